// Compact weights in the order in which the kernels read them.
#pragma once

#include <cstdint>
#include <vector>

#include "core/kernels.h"

namespace rlal {

// A dense convolution with its full weights, [out][full_in][kernel_h][kernel_w].
struct FullConv {
  const float* weights;
  const float* transformed;  // [36][out][full_in], see transform_weights; null: not applicable
  int64_t full_out, full_in;
  Window window;
};

struct PackedConv {
  bool winograd = false;
  std::vector<float> weights;
};

// A factor and an addend for each kept output channel; empty: 1 and 0.
struct ChannelAffine {
  std::vector<float> scale, shift;
};

// The rows `out` and columns `in` of the full weights, by the algorithm that is fastest for these
// numbers of channels and an output of height x width. `scale` is per kept output channel, or
// empty.
PackedConv pack_conv(const Kernels& kernels, const FullConv& conv, const std::vector<int>& out,
                     const std::vector<int>& in, int height, int width,
                     const std::vector<float>& scale = {});

// The kept channels of weights [channels][taps].
std::vector<float> pack_channels(const float* weights, int64_t taps, const std::vector<int>& kept,
                                 const ChannelAffine& affine = {});

}  // namespace rlal
