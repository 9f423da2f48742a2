#include "core/winograd.h"

namespace rlal {
namespace {

constexpr int kTilesAtMost = 4;

// Vector operations: per tile 36 products for each pair of channels, against 9 per pixel; the
// transforms cost about 126 per input and 150 per output channel, and half as much again in cache
// traffic.
constexpr double kProduct = 36, kDirect = 9, kInput = 190, kOutput = 225;

// G of F(4, 3) for the points 0, 1, -1, 2, -2 and infinity.
constexpr double kG[6][3] = {{1.0 / 4, 0, 0},
                             {-1.0 / 6, -1.0 / 6, -1.0 / 6},
                             {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                             {1.0 / 24, 1.0 / 12, 1.0 / 6},
                             {1.0 / 24, -1.0 / 12, 1.0 / 6},
                             {0, 0, 1}};

}  // namespace

bool winograd_applies(const Window& w) {
  return w.kernel_h == 3 && w.kernel_w == 3 && w.stride_h == 1 && w.stride_w == 1 &&
         w.dilation_h == 1 && w.dilation_w == 1;
}

bool winograd_pays(int in_channels, int out_channels, int out_height, int out_width) {
  const double pairs = static_cast<double>(in_channels) * out_channels;
  const int64_t down = (out_height + 3) / 4, across = (out_width + 3) / 4;
  const auto tiles = static_cast<double>(down * across);
  const double pixels = static_cast<double>(out_height) * out_width;
  return tiles * (kProduct * pairs + kInput * in_channels + kOutput * out_channels) <
         kDirect * pixels * pairs;
}

int winograd_overshoot(const Window& w, int in_width, int out_width) {
  const int tiles = (out_width + 3) / 4;
  return 4 * tiles + 2 - w.pad_w - in_width;
}

std::vector<float> winograd_weights(const float* weights, int64_t filters) {
  std::vector<float> transformed(kWinogradPositions * filters);
  for (int64_t f = 0; f < filters; ++f) {
    const float* g = weights + f * 9;
    double half[6][3];
    for (int i = 0; i < 6; ++i)
      for (int j = 0; j < 3; ++j)
        half[i][j] = kG[i][0] * g[j] + kG[i][1] * g[3 + j] + kG[i][2] * g[6 + j];
    for (int i = 0; i < 6; ++i)
      for (int j = 0; j < 6; ++j) {
        const double* row = half[i];
        transformed[(i * 6 + j) * filters + f] =
            static_cast<float>(row[0] * kG[j][0] + row[1] * kG[j][1] + row[2] * kG[j][2]);
      }
  }
  return transformed;
}

int64_t winograd_scratch(int in_channels, int out_channels, int lanes) {
  const int64_t channel = kWinogradPositions * kTilesAtMost + 1;
  return (in_channels + out_channels) * channel * lanes;
}

}  // namespace rlal
