// When Winograd F(4x4, 3x3) applies and pays, and its weights (the kernel is cpu/winograd.inl).
#pragma once

#include <cstdint>
#include <vector>

#include "core/kernels.h"

namespace rlal {

constexpr int kWinogradPositions = 36;
constexpr int kWinogradRows = 4;  // outputs of a tile in each direction

// 3x3, stride 1, no dilation. Tiles of 4 x 4 outputs may stick out of the image.
bool winograd_applies(const Window& window);

// Fewer operations than the direct way? The transforms weigh more with few channels, and tiles that
// stick out waste products.
bool winograd_pays(int in_channels, int out_channels, int out_height, int out_width);

// Pixels that the tiles read to the right of an image, beyond its last column.
int winograd_overshoot(const Window& window, int in_width, int out_width);

// weights [out][in][3][3], times scale [out] (null: 1) -> `to`, U [36][out][in], on `threads`
// threads. Computed in double precision.
void transform_weights(const float* weights, const double* scale, int64_t out, int64_t in,
                       int threads, float* to);

// Floats that the kernel needs as scratch for a block of tiles.
int64_t winograd_scratch(int in_channels, int out_channels, int lanes);

}  // namespace rlal
