// What the kernels must compute: plain loops in double precision.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/network.h"

namespace rlal {

struct Volume {
  int channels, height, width;
  std::vector<double> values;

  Volume(int c, int h, int w)
      : channels(c), height(h), width(w), values(static_cast<size_t>(c) * h * w) {}
  double& at(int c, int y, int x) { return values[(c * height + y) * width + x]; }
  double at(int c, int y, int x) const { return values[(c * height + y) * width + x]; }
};

// Of each operation, of the full network; laid out as Program::set_weights takes them.
struct Weights {
  std::vector<std::vector<float>> weights, bias;
};

struct Expected {
  Volume result;   // what the last operation writes
  double largest;  // magnitude in it, before the activation
};

// For one image [channels][height][width]. A channel whose class is not kept is zero in every
// tensor: that is what removing it means.
Expected reference(const Network& network, const Weights& weights, const std::vector<uint8_t>& kept,
                   const float* image);

}  // namespace rlal
