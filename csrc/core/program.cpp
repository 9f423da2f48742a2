#include "core/program.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "core/winograd.h"

namespace rlal {
namespace {

bool has_weights(OpKind kind) {
  return kind == OpKind::conv || kind == OpKind::depthwise || kind == OpKind::affine;
}

int64_t plane(int height, int width, int border) {
  return static_cast<int64_t>(height + 2 * border) * (width + 2 * border);
}

}  // namespace

Buffer::Buffer(int64_t floats) : size_(floats) {
  const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
  float* memory = static_cast<float*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64)));
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, 0, bytes);
  data_.reset(memory);
}

void Buffer::Free::operator()(float* p) const { std::free(p); }

Program::Program(std::vector<TensorSpec> tensors, std::vector<OpSpec> ops, int classes,
                 const Kernels& kernels)
    : tensors_(std::move(tensors)), ops_(std::move(ops)), classes_(classes), kernels_(kernels) {
  const int count = static_cast<int>(tensors_.size());
  if (count == 0 || ops_.empty())
    throw std::invalid_argument("a program needs tensors and operations");
  for (const TensorSpec& tensor : tensors_)
    for (const int32_t id : tensor.classes)
      if (id < 0 || id >= classes_) throw std::invalid_argument("a channel class is out of range");
  for (const OpSpec& op : ops_)
    if (op.input < 0 || op.input >= count || op.output <= 0 || op.output >= count ||
        op.residual >= count)
      throw std::invalid_argument("an operation names a tensor that does not exist");
  weights_.resize(ops_.size());
  bias_.resize(ops_.size());
  winograd_.resize(ops_.size());
  assign_slots();
}

// A tensor takes a free slot of its geometry; its inputs' slots become free after their last
// reader. A residual that dies at an operation may be overwritten by it: both are read and written
// pixel by pixel.
void Program::assign_slots() {
  std::vector<int> last_read(tensors_.size(), -1);
  for (size_t i = 0; i < ops_.size(); ++i) {
    last_read[ops_[i].input] = static_cast<int>(i);
    if (ops_[i].residual >= 0) last_read[ops_[i].residual] = static_cast<int>(i);
  }
  slot_of_.assign(tensors_.size(), -1);
  std::vector<bool> busy;
  const auto release = [&](int tensor, int op) {
    if (tensor > 0 && slot_of_[tensor] >= 0 && last_read[tensor] == op)
      busy[slot_of_[tensor]] = false;
  };
  for (size_t i = 0; i < ops_.size(); ++i) {
    const OpSpec& op = ops_[i];
    const TensorSpec& out = tensors_[op.output];
    const int index = static_cast<int>(i);
    if (op.residual >= 0 && op.residual != op.input) release(op.residual, index);
    int found = -1;
    for (size_t s = 0; s < slots_.size() && found < 0; ++s)
      if (!busy[s] && slots_[s].height == out.height && slots_[s].width == out.width &&
          slots_[s].border == out.border)
        found = static_cast<int>(s);
    if (found < 0) {
      found = static_cast<int>(slots_.size());
      slots_.push_back({out.height, out.width, out.border, 0});
      busy.push_back(false);
    }
    slots_[found].channels = std::max(slots_[found].channels, static_cast<int>(out.classes.size()));
    busy[found] = true;
    slot_of_[op.output] = found;
    release(op.input, index);
  }
}

int64_t Program::weight_size(int i) const {
  const OpSpec& op = ops_[i];
  const int64_t out = static_cast<int64_t>(tensors_[op.output].classes.size());
  const int64_t in = static_cast<int64_t>(tensors_[op.input].classes.size());
  const int64_t taps = static_cast<int64_t>(op.window.kernel_h) * op.window.kernel_w;
  if (op.kind == OpKind::conv) return out * in * taps;
  return op.kind == OpKind::depthwise ? out * taps : out;
}

void Program::set_weights(int i, const float* weights, int64_t weight_count, const float* bias,
                          int64_t bias_count) {
  if (i < 0 || i >= static_cast<int>(ops_.size()) || !has_weights(ops_[i].kind))
    throw std::invalid_argument("operation " + std::to_string(i) + " has no weights");
  const int64_t outputs = static_cast<int64_t>(tensors_[ops_[i].output].classes.size());
  if (weight_count != weight_size(i) || bias_count != outputs)
    throw std::invalid_argument(
        "operation " + std::to_string(i) + " has " + std::to_string(weight_size(i)) +
        " weights and " + std::to_string(outputs) + " biases, not " + std::to_string(weight_count) +
        " and " + std::to_string(bias_count));
  weights_[i].assign(weights, weights + weight_count);
  bias_[i].assign(bias, bias + bias_count);
  const TensorSpec& out = tensors_[ops_[i].output];
  if (ops_[i].kind == OpKind::conv && winograd_applies(ops_[i].window, out.height, out.width))
    winograd_[i] = winograd_weights(weights_[i], weight_count / 9);
}

std::vector<int> Program::kept_of(int tensor, const uint8_t* kept_classes) const {
  std::vector<int> kept;
  const std::vector<int32_t>& classes = tensors_[tensor].classes;
  for (size_t c = 0; c < classes.size(); ++c)
    if (kept_classes[classes[c]]) kept.push_back(static_cast<int>(c));
  return kept;
}

Packed Program::pack(const uint8_t* kept_classes) const {
  Packed packed;
  std::vector<std::vector<int>> kept;
  for (size_t t = 0; t < tensors_.size(); ++t) {
    kept.push_back(kept_of(static_cast<int>(t), kept_classes));
    packed.channels.push_back(static_cast<int>(kept.back().size()));
  }
  packed.weights.resize(ops_.size());
  packed.bias.resize(ops_.size());
  packed.sources.resize(ops_.size());
  packed.winograd.resize(ops_.size());
  for (size_t i = 0; i < ops_.size(); ++i) pack_op(static_cast<int>(i), kept, &packed);
  return packed;
}

void Program::pack_op(int i, const std::vector<std::vector<int>>& kept, Packed* packed) const {
  const OpSpec& op = ops_[i];
  const std::vector<int>&in = kept[op.input], &out = kept[op.output];
  if (has_weights(op.kind)) {
    if (weights_[i].empty())
      throw std::invalid_argument("operation " + std::to_string(i) + " has no weights yet");
    for (const int c : out) packed->bias[i].push_back(bias_[i][c]);
  }
  if (op.kind == OpKind::conv) {
    pack_conv(i, out, in, packed);
  } else if (op.kind == OpKind::depthwise || op.kind == OpKind::affine) {
    const int64_t taps = weight_size(i) / static_cast<int64_t>(tensors_[op.output].classes.size());
    for (const int c : out)
      packed->weights[i].insert(packed->weights[i].end(), &weights_[i][c * taps],
                                &weights_[i][c * taps] + taps);
  } else if (op.kind == OpKind::select) {
    for (const int c : out) {
      const auto place = std::lower_bound(in.begin(), in.end(), c - op.pad_before);
      const bool found = place != in.end() && *place == c - op.pad_before;
      packed->sources[i].push_back(found ? static_cast<int32_t>(place - in.begin()) : -1);
    }
  }
}

// Direct: [register tile of output channels][input channel][tap][channel in tile]; Winograd: the
// same for each of the 36 positions, which then is one tap. Either way a kernel reads it straight
// through.
void Program::pack_conv(int i, const std::vector<int>& out, const std::vector<int>& in,
                        Packed* packed) const {
  const int outputs = static_cast<int>(out.size());
  const bool winograd =
      !winograd_[i].empty() && winograd_pays(static_cast<int>(in.size()), outputs);
  packed->winograd[i] = winograd;
  const int64_t full_in = static_cast<int64_t>(tensors_[ops_[i].input].classes.size());
  const int64_t full_out = static_cast<int64_t>(tensors_[ops_[i].output].classes.size());
  const int64_t taps = winograd ? 1 : weight_size(i) / (full_in * full_out);
  const int64_t positions = winograd ? kWinogradPositions : 1;
  const Split split(outputs, winograd ? kernels_.winograd_channels : kernels_.out_channels);
  std::vector<float>& to = packed->weights[i];
  to.resize(out.size() * in.size() * taps * positions);
  float* next = to.data();
  for (int64_t position = 0; position < positions; ++position) {
    const float* from =
        winograd ? &winograd_[i][position * full_in * full_out] : weights_[i].data();
    for (int part = 0, first = 0; part < split.parts; first += split.size(part), ++part)
      for (const int c : in)
        for (int64_t tap = 0; tap < taps; ++tap)
          for (int o = first; o < first + split.size(part); ++o)
            *next++ = from[(out[o] * full_in + c) * taps + tap];
  }
}

Arena Program::make_arena() const {
  Arena arena;
  for (const Slot& slot : slots_)
    arena.slots.emplace_back(plane(slot.height, slot.width, slot.border) * slot.channels *
                             kernels_.lanes);
  int64_t scratch = 0;
  for (size_t i = 0; i < ops_.size(); ++i)
    if (!winograd_[i].empty())
      scratch = std::max(scratch,
                         winograd_scratch(static_cast<int>(tensors_[ops_[i].input].classes.size()),
                                          static_cast<int>(tensors_[ops_[i].output].classes.size()),
                                          kernels_.lanes));
  arena.scratch = Buffer(scratch);
  return arena;
}

int64_t Program::block_floats() const {
  const TensorSpec& in = input();
  return plane(in.height, in.width, in.border) * static_cast<int64_t>(in.classes.size()) *
         kernels_.lanes;
}

View Program::view(int tensor, float* base, int channels) const {
  const TensorSpec& t = tensors_[tensor];
  const int64_t row = t.width + 2 * t.border;
  float* first = base + (t.border * row + t.border) * kernels_.lanes;
  return {first, plane(t.height, t.width, t.border), row, channels, t.height, t.width};
}

View Program::run(const Packed& packed, Arena& arena, float* images) const {
  const auto tensor = [&](int t) {
    return view(t, t == 0 ? images : arena.slots[slot_of_[t]].data(), packed.channels[t]);
  };
  for (size_t i = 0; i < ops_.size(); ++i) {
    const OpSpec& op = ops_[i];
    const View in = tensor(op.input), out = tensor(op.output);
    const float* residual = op.residual < 0 ? nullptr : tensor(op.residual).data;
    const float *weights = packed.weights[i].data(), *bias = packed.bias[i].data();
    switch (op.kind) {
      case OpKind::conv:
        (packed.winograd[i] ? kernels_.winograd : kernels_.conv)(
            {in, out, residual, weights, bias, op.window, op.low, op.high, arena.scratch.data()});
        break;
      case OpKind::depthwise:
        kernels_.depthwise({in, out, residual, weights, bias, op.window, op.low, op.high, nullptr});
        break;
      case OpKind::max_pool:
        kernels_.max_pool({in, out, op.window, op.count_padding});
        break;
      case OpKind::avg_pool:
        kernels_.avg_pool({in, out, op.window, op.count_padding});
        break;
      case OpKind::affine:
        kernels_.affine({in, out, weights, bias, residual, op.low, op.high});
        break;
      case OpKind::select:
        kernels_.select(
            {in, out, packed.sources[i].data(), op.window.stride_h, op.window.stride_w});
        break;
    }
  }
  return tensor(ops_.back().output);
}

}  // namespace rlal
