// The fused convolution alone, on ordinary [N, C, H, W] arrays.
#pragma once

#include <cstdint>
#include <vector>

#include "core/evaluate.h"
#include "core/kernels.h"

namespace rlal {

struct MaskedConv {
  const float* x = nullptr;         // [images][kept_in][height][width]
  const float* weight = nullptr;    // [out][full_in][kernel_h][kernel_w]; depthwise: full_in = 1
  const float* bias = nullptr;      // [out]
  const float* residual = nullptr;  // shaped like the result, or null
  int64_t images = 0;
  int height = 0, width = 0, full_in = 0;
  Window window{};
  bool depthwise = false;
  float low = 0, high = 0;
  std::vector<int> kept_in, kept_out;

  int out_height() const {
    return (height + 2 * window.pad_h - window.dilation_h * (window.kernel_h - 1) - 1) /
               window.stride_h +
           1;
  }
  int out_width() const {
    return (width + 2 * window.pad_w - window.dilation_w * (window.kernel_w - 1) - 1) /
               window.stride_w +
           1;
  }
};

// out [images][kept_out][out_height][out_width]. Returns false when interrupted.
bool run_masked_conv(const Kernels& kernels, const MaskedConv& conv, int threads,
                     const Interrupted& interrupted, float* out);

}  // namespace rlal
