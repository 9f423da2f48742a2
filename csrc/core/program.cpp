#include "core/program.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/winograd.h"

namespace rlal {
namespace {

bool has_weights(OpKind kind) {
  return kind == OpKind::conv || kind == OpKind::depthwise || kind == OpKind::affine;
}

}  // namespace

Program::Program(Network network, int classes, const Kernels& kernels)
    : network_(checked(std::move(network), classes)),
      classes_(classes),
      kernels_(kernels),
      layout_(network_, kernels.lanes, Layout::Storage::streamed),
      weights_(network_.ops.size()),
      bias_(network_.ops.size()),
      winograd_(network_.ops.size()),
      norms_(network_.ops.size()) {}

int64_t Program::taps(int i) const {
  const OpSpec& op = network_.ops[i];
  return op.kind == OpKind::affine ? 1
                                   : static_cast<int64_t>(op.window.kernel_h) * op.window.kernel_w;
}

int64_t Program::weight_size(int i) const {
  const OpSpec& op = network_.ops[i];
  const int64_t inputs = op.kind == OpKind::conv ? network_.channels(op.input) : 1;
  return network_.channels(op.output) * inputs * taps(i);
}

void Program::set_weights(int i, const float* weights, int64_t weight_count, const float* bias,
                          int64_t bias_count, const double* scale, int threads) {
  if (i < 0 || i >= static_cast<int>(network_.ops.size()) || !has_weights(network_.ops[i].kind))
    throw std::invalid_argument("operation " + std::to_string(i) + " has no weights");
  const int64_t outputs = network_.channels(network_.ops[i].output);
  if (weight_count != weight_size(i) || bias_count != outputs)
    throw std::invalid_argument(
        "operation " + std::to_string(i) + " has " + std::to_string(weight_size(i)) +
        " weights and " + std::to_string(outputs) + " biases, not " + std::to_string(weight_count) +
        " and " + std::to_string(bias_count));
  weights_[i].resize(weight_count);
  const int64_t of_one = outputs > 0 ? weight_count / outputs : 0;
  for (int64_t o = 0; o < outputs; ++o)
    for (int64_t k = o * of_one; k < (o + 1) * of_one; ++k)
      weights_[i][k] = scale ? static_cast<float>(weights[k] * scale[o]) : weights[k];
  bias_[i].assign(bias, bias + bias_count);
  if (network_.ops[i].kind != OpKind::conv || !winograd_applies(network_.ops[i].window)) return;
  winograd_[i].resize(kWinogradPositions * weight_count / 9);
  transform_weights(weights, scale, outputs, of_one / 9, threads, winograd_[i].data());
}

void Program::set_norm(int i, Norm norm) {
  const bool known =
      i >= 0 && i < static_cast<int>(network_.ops.size()) && has_weights(network_.ops[i].kind);
  const size_t outputs = known ? network_.channels(network_.ops[i].output) : 0;
  if (!known || norm.weight.size() != outputs || norm.bias.size() != outputs)
    throw std::invalid_argument("operation " + std::to_string(i) +
                                " takes no batch norm of this size");
  norms_[i] = std::move(norm);
}

const Norm* Program::norm(int i) const { return norms_[i].weight.empty() ? nullptr : &norms_[i]; }

std::vector<int> Program::kept(int tensor, const uint8_t* kept_classes) const {
  std::vector<int> kept;
  const std::vector<int32_t>& classes = network_.tensors[tensor].classes;
  for (size_t c = 0; c < classes.size(); ++c)
    if (kept_classes[classes[c]]) kept.push_back(static_cast<int>(c));
  return kept;
}

Packed Program::pack(const uint8_t* kept_classes,
                     const std::vector<ChannelAffine>* corrections) const {
  Packed packed;
  std::vector<std::vector<int>> channels;
  for (size_t t = 0; t < network_.tensors.size(); ++t) {
    channels.push_back(kept(static_cast<int>(t), kept_classes));
    packed.channels.push_back(static_cast<int>(channels.back().size()));
  }
  packed.weights.resize(network_.ops.size());
  packed.bias.resize(network_.ops.size());
  packed.sources.resize(network_.ops.size());
  const ChannelAffine none;
  for (size_t i = 0; i < network_.ops.size(); ++i)
    pack_op(static_cast<int>(i), channels, corrections ? (*corrections)[i] : none, &packed);
  return packed;
}

void Program::pack_op(int i, const std::vector<std::vector<int>>& kept,
                      const ChannelAffine& correction, Packed* packed) const {
  const OpSpec& op = network_.ops[i];
  const std::vector<int>&in = kept[op.input], &out = kept[op.output];
  // weights are only scaled, biases shifted as well
  const ChannelAffine scaling{correction.scale, std::vector<float>(correction.scale.size())};
  if (has_weights(op.kind)) {
    if (weights_[i].empty())
      throw std::invalid_argument("operation " + std::to_string(i) + " has no weights yet");
    packed->bias[i] = pack_channels(bias_[i].data(), 1, out, correction);
  }
  if (op.kind == OpKind::conv) {
    const TensorSpec& to = network_.tensors[op.output];
    const FullConv full{weights_[i].data(), winograd_[i].empty() ? nullptr : winograd_[i].data(),
                        network_.channels(op.output), network_.channels(op.input), op.window};
    packed->weights[i] = pack_conv(kernels_, full, out, in, to.height, to.width, correction.scale);
  } else if (op.kind == OpKind::depthwise || op.kind == OpKind::affine) {
    packed->weights[i].weights = pack_channels(weights_[i].data(), taps(i), out, scaling);
  } else if (op.kind == OpKind::select) {
    for (const int c : out) {
      const auto place = std::lower_bound(in.begin(), in.end(), c - op.pad_before);
      const bool found = place != in.end() && *place == c - op.pad_before;
      packed->sources[i].push_back(found ? static_cast<int32_t>(place - in.begin()) : -1);
    }
  }
}

}  // namespace rlal
