// Picks the kernels for this machine, once. RLAL_FAST_ISA=avx512|avx2|neon|portable forces
// one.
#pragma once

#include <string>
#include <vector>

#include "core/kernels.h"

namespace rlal {

// Instruction sets that this build contains and this machine can run, best first.
std::vector<const Kernels*> available_kernels();

// By name; an empty name means the environment's choice or the best. Throws std::invalid_argument.
const Kernels& kernels(const std::string& name = "");

}  // namespace rlal
