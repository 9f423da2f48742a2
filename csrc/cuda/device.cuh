// What every kernel includes: CUDA itself, or the emulator where the .cu files are compiled as C++.
#pragma once

#include <cstdint>

#ifdef RLAL_FAST_CUDA_EMULATED
#include "cuda/emulator/emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace rlal::cuda {

constexpr int kWarpSize = 32;

// The block's shared memory, as much of it as the launch asked for; aligned to 16 bytes at least.
__device__ inline unsigned char* shared_memory() {
#ifdef RLAL_FAST_CUDA_EMULATED
  return emulator::shared_memory();
#else
  extern __shared__ __align__(128) unsigned char rlal_fast_shared[];
  return rlal_fast_shared;
#endif
}

}  // namespace rlal::cuda
