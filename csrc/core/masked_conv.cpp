#include "core/masked_conv.h"

#include <algorithm>

#include "core/parallel.h"

namespace rlal {
namespace {

struct Block {  // one tensor of one block of images, with its zero border
  Buffer buffer;
  View view{};

  Block(int channels, int height, int width, int border_h, int border_w, int lanes) {
    const int64_t row = width + 2 * border_w, plane = row * (height + 2 * border_h);
    buffer = Buffer(plane * channels * lanes);
    view = {
        buffer.data() + (border_h * row + border_w) * lanes, plane, row, channels, height, width};
  }
};

std::vector<float> packed_weights(const MaskedConv& conv, int tile_channels) {
  const int64_t taps = static_cast<int64_t>(conv.window.kernel_h) * conv.window.kernel_w;
  std::vector<float> packed;
  if (conv.depthwise) {
    for (const int64_t c : conv.kept_out)
      packed.insert(packed.end(), conv.weight + c * taps, conv.weight + (c + 1) * taps);
    return packed;
  }
  const Split split(static_cast<int>(conv.kept_out.size()), tile_channels);
  for (int part = 0, first = 0; part < split.parts; first += split.size(part), ++part)
    for (const int64_t c : conv.kept_in)
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int o = first; o < first + split.size(part); ++o)
          packed.push_back(conv.weight[(conv.kept_out[o] * conv.full_in + c) * taps + tap]);
  return packed;
}

}  // namespace

bool run_masked_conv(const Kernels& kernels, const MaskedConv& conv, int threads,
                     const Interrupted& interrupted, float* out) {
  if (conv.images == 0 || conv.kept_out.empty()) return true;
  const int in_channels = static_cast<int>(conv.kept_in.size()),
            out_channels = static_cast<int>(conv.kept_out.size());
  const int out_h = conv.out_height(), out_w = conv.out_width(), lanes = kernels.lanes;
  const std::vector<float> weights = packed_weights(conv, kernels.out_channels);
  std::vector<float> bias;
  for (const int64_t c : conv.kept_out) bias.push_back(conv.bias[c]);

  const int64_t in_stride = static_cast<int64_t>(in_channels) * conv.height * conv.width;
  const int64_t out_stride = static_cast<int64_t>(out_channels) * out_h * out_w;
  return run_parallel(
      threads, (conv.images + lanes - 1) / lanes,
      [&](int, int64_t b) {
        const int count = static_cast<int>(std::min<int64_t>(lanes, conv.images - b * lanes));
        const Block in(in_channels, conv.height, conv.width, conv.window.pad_h, conv.window.pad_w,
                       lanes);
        const Block result(out_channels, out_h, out_w, 0, 0, lanes);
        kernels.load_images(conv.x + b * lanes * in_stride, in_stride, count, in.view);
        ConvArgs args{in.view,     result.view, nullptr,   weights.data(), bias.data(),
                      conv.window, conv.low,    conv.high, nullptr};
        if (conv.residual !=
            nullptr) {  // the kernel may read the residual where it writes the result
          kernels.load_images(conv.residual + b * lanes * out_stride, out_stride, count,
                              result.view);
          args.residual = result.view.data;
        }
        (conv.depthwise ? kernels.depthwise : kernels.conv)(args);
        kernels.store_images(result.view, out + b * lanes * out_stride, out_stride, count);
      },
      interrupted);
}

}  // namespace rlal
