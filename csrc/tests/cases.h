// Networks on which the kernels are checked: each operation alone, with sizes that leave remainders
// everywhere, and small networks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/network.h"

namespace rlal {

struct Case {
  std::string name;
  Network network;
  std::vector<uint8_t> kept;  // per channel class
  bool winograd = false;      // the last operation is meant for Winograd's algorithm
  bool streamed = false;      // a part is meant to run row by row
};

// Always the same ones.
std::vector<Case> all_cases();

// A MobileNet with a classifier, wide enough to run row by row with vectors of 4 images.
Case mobilenet_case();

}  // namespace rlal
