#include "cuda/masked_conv.h"

#include <algorithm>
#include <cstring>

#include "cuda/kernels.h"

namespace rlal::cuda {
namespace {

constexpr int64_t kMostRows = 1 << 26;  // pixels of a turn: keeps the workspace within bounds

int64_t up(int64_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

MaskedConv::MaskedConv(const OpSpec& spec, int height, int width, int full_in, int full_out,
                       const std::vector<int32_t>& kept_in, const std::vector<int32_t>& kept_out,
                       Precision precision)
    : precision_(precision) {
  const Window& w = spec.window;
  const int out_height =
      (height + 2 * w.pad_h - w.dilation_h * (w.kernel_h - 1) - 1) / w.stride_h + 1;
  const int out_width =
      (width + 2 * w.pad_w - w.dilation_w * (w.kernel_w - 1) - 1) / w.stride_w + 1;
  op_ = plan_op(spec, plan_tensor(static_cast<int>(kept_in.size()), height, width, precision),
                plan_tensor(static_cast<int>(kept_out.size()), out_height, out_width, precision),
                precision);
  op_.in.offset = kImages;
  op_.weights = 0;
  op_.bias = up(packed_weight_bytes(op_, precision));
  packed_bytes_ = op_.bias + up(packed_bias_bytes(op_));
  pack_ = plan_packing(spec, op_, full_in, precision);
  pack_.corrected = -1;
  pack_.full_weights = 0;
  pack_.full_bias = static_cast<int64_t>(full_out) * full_in * pack_.taps;
  pack_.kept_in = sizeof(PackPlan);
  pack_.kept_out = pack_.kept_in + static_cast<int64_t>(kept_in.size()) * 4;
  descriptors_.resize(pack_.kept_out + kept_out.size() * 4);
  std::memcpy(descriptors_.data(), &pack_, sizeof(pack_));
  std::memcpy(descriptors_.data() + pack_.kept_in, kept_in.data(), kept_in.size() * 4);
  std::memcpy(descriptors_.data() + pack_.kept_out, kept_out.data(), kept_out.size() * 4);
}

int64_t MaskedConv::batch(int64_t images) const {
  const int64_t pixels = std::max(static_cast<int64_t>(op_.in.height) * op_.in.width,
                                  static_cast<int64_t>(op_.out.height) * op_.out.width);
  return std::min(images, std::max<int64_t>(1, kMostRows / std::max<int64_t>(1, pixels)));
}

// [packed weights] [input] [output] [residual]
int64_t MaskedConv::workspace_bytes(int64_t images) const {
  const int64_t count = batch(images);
  return packed_bytes_ + up(count * op_.in.image_bytes) + 2 * count * op_.out.image_bytes;
}

void MaskedConv::run(const Memory& memory, int64_t images, Stream stream) const {
  if (images == 0) return;
  unsigned char* packed = memory.workspace;
  pack({reinterpret_cast<const PackPlan*>(memory.descriptors), memory.descriptors, memory.full,
        packed, nullptr},
       precision_, 1, pack_.words, stream);
  const int64_t most = batch(images);
  unsigned char* in = packed + packed_bytes_;
  unsigned char* out = in + up(most * op_.in.image_bytes);
  const auto floats = [](const TensorPlan& t) {
    return static_cast<int64_t>(t.channels) * t.height * t.width;
  };
  for (int64_t first = 0; first < images; first += most) {
    const int64_t count = std::min(most, images - first);
    const int64_t in_at = first * floats(op_.in), out_at = first * floats(op_.out);
    OpPlan op = op_;
    load_images(memory.x + in_at, count, op.in, precision_, in, stream);
    if (memory.residual != nullptr) {
      op.residual = op.out.image_bytes;  // after the output, of each image of the turn
      load_images(memory.residual + out_at, count, op.out, precision_,
                  out + count * op.out.image_bytes, stream);
    }
    const Cursor cursor{nullptr, static_cast<int32_t>(count), count};
    run_layer({op, memory.descriptors, packed, in, out, cursor}, precision_, stream);
    store_images(out, count, op.out, precision_, memory.out + out_at, stream);
  }
}

}  // namespace rlal::cuda
