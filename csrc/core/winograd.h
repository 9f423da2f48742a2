// When Winograd F(4x4, 3x3) applies and pays, and its weights (the kernel is cpu/winograd.inl).
#pragma once

#include <cstdint>
#include <vector>

#include "core/kernels.h"

namespace rlal {

constexpr int kWinogradPositions = 36;

// 3x3, stride 1, padding 1, no dilation, and an output that tiles of 4 x 4 pixels cover exactly.
bool winograd_applies(const Window& window, int out_height, int out_width);

// Fewer operations than the direct way? The transforms weigh more with few channels.
bool winograd_pays(int in_channels, int out_channels);

// weights [out][in][3][3] -> U [36][out][in], computed in double precision.
std::vector<float> winograd_weights(const std::vector<float>& weights, int64_t filters);

// Floats that the kernel needs as scratch for a block of tiles.
int64_t winograd_scratch(int in_channels, int out_channels, int lanes);

}  // namespace rlal
