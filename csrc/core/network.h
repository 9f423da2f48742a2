// A network as a list of fused operations on tensors.
#pragma once

#include <cstdint>
#include <vector>

#include "core/kernels.h"

namespace rlal {

enum class OpKind { conv, depthwise, max_pool, avg_pool, affine, select };

struct TensorSpec {
  int height, width;
  std::vector<int32_t> classes;  // channel class of each channel
};

struct OpSpec {
  OpKind kind;
  int input, output, residual;  // tensors; residual -1: none
  Window window;
  float low, high;
  bool count_padding;
  int pad_before;  // select: zero channels before the input's (in full channels)
};

// Tensor 0 holds the images, the last operation writes the logits.
struct Network {
  std::vector<TensorSpec> tensors;
  std::vector<OpSpec> ops;

  int channels(int tensor) const { return static_cast<int>(tensors[tensor].classes.size()); }
};

// The network as it is. Throws std::invalid_argument for one that names what does not exist.
Network checked(Network network, int classes);

}  // namespace rlal
