#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>

namespace rlal {

namespace avx512 {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
namespace neon {
extern const Kernels table;
}
namespace portable {
extern const Kernels table;
}

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> found;
#ifdef RLAL_FAST_WITH_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    found.push_back(&avx512::table);
#endif
#ifdef RLAL_FAST_WITH_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back(&avx2::table);
#endif
#ifdef RLAL_FAST_WITH_NEON
  found.push_back(&neon::table);  // a part of AArch64
#endif
  found.push_back(&portable::table);
  return found;
}

const Kernels& kernels(const std::string& name) {
  const std::vector<const Kernels*> found = available_kernels();
  std::string wanted = name;
  if (wanted.empty()) {
    const char* forced = std::getenv("RLAL_FAST_ISA");
    if (forced == nullptr || *forced == 0) return *found.front();
    wanted = forced;
  }
  std::string known;
  for (const Kernels* candidate : found) {
    if (wanted == candidate->name) return *candidate;
    known += known.empty() ? candidate->name : std::string(", ") + candidate->name;
  }
  throw std::invalid_argument("instruction set '" + wanted +
                              "' (RLAL_FAST_ISA) cannot run here: this build and machine offer " +
                              known);
}

}  // namespace rlal
