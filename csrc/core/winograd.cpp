#include "core/winograd.h"

#include <algorithm>

#include "core/parallel.h"

namespace rlal {
namespace {

constexpr int kTilesAtMost = 4;

// Vector operations: per tile 36 products for each pair of channels, against 9 per pixel; the
// transforms cost about 126 per input and 150 per output channel, and half as much again in cache
// traffic.
constexpr double kProduct = 36, kDirect = 9, kInput = 190, kOutput = 225;

constexpr int kFilters = 16;  // that are transformed together: enough to fill vectors

using Filters = double[kFilters];

// G of F(4, 3) for the points 0, 1, -1, 2, -2 and infinity: three taps become six.
void transform(const Filters& g0, const Filters& g1, const Filters& g2, Filters* to) {
  for (int f = 0; f < kFilters; ++f) {
    const double even = (g0[f] + g2[f]) / 6, odd = g1[f] / 6;
    const double wide = g0[f] / 24 + g2[f] / 6, slope = g1[f] / 12;
    to[0][f] = g0[f] / 4;
    to[1][f] = -even - odd;
    to[2][f] = odd - even;
    to[3][f] = wide + slope;
    to[4][f] = wide - slope;
    to[5][f] = g2[f];
  }
}

// `count` filters [3][3] -> the same places of 36 planes that are `plane` apart.
void transform_filters(const float* weights, double scale, int64_t count, int64_t plane,
                       float* to) {
  Filters taps[3][3] = {}, half[3][6], full[6];
  for (int64_t f = 0; f < count; ++f)
    for (int y = 0; y < 3; ++y)
      for (int x = 0; x < 3; ++x) taps[x][y][f] = weights[f * 9 + y * 3 + x] * scale;
  for (int x = 0; x < 3; ++x) transform(taps[x][0], taps[x][1], taps[x][2], half[x]);
  for (int i = 0; i < 6; ++i) {
    transform(half[0][i], half[1][i], half[2][i], full);
    for (int j = 0; j < 6; ++j, to += plane)
      for (int64_t f = 0; f < count; ++f) to[f] = static_cast<float>(full[j][f]);
  }
}

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

void transform_weights(const float* weights, const double* scale, int64_t out, int64_t in,
                       int threads, float* to) {
  const auto one = [&](int, int64_t o) {
    for (int64_t i = 0; i < in; i += kFilters) {
      const int64_t first = o * in + i;
      transform_filters(weights + first * 9, scale ? scale[o] : 1,
                        std::min<int64_t>(kFilters, in - i), out * in, to + first);
    }
  };
  const bool small = out * in < 4096;  // not worth a thread
  run_parallel(small ? 1 : threads, out, one, [] { return false; });
}

int64_t winograd_scratch(int in_channels, int out_channels, int lanes) {
  const int64_t channel = kWinogradPositions * kTilesAtMost + 1;
  return (in_channels + out_channels) * channel * lanes;
}

}  // namespace rlal
