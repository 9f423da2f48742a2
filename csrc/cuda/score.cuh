// From logits to counts.
#pragma once

#include "cuda/kernels.h"
#include "cuda/ptx.cuh"

namespace rlal::cuda {

// As torch: the first of equal logits wins, and NaN counts as the largest.
__device__ __forceinline__ bool beats(float value, int index, float best, int best_index) {
  const bool no_number = value != value, best_no_number = best != best;
  if (no_number != best_no_number) return no_number;
  if (no_number || value == best) return index < best_index;
  return value > best;
}

// By one warp: hands out the logits of an image where they are asked for, else counts it.
__device__ inline void score_image(const float* logits, int64_t image, int subnet,
                                   const Scores& scores) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (scores.logits != nullptr) {
    for (int c = lane; c < scores.outputs; c += kWarpSize)
      scores.logits[image * scores.outputs + c] = logits[c];
    return;
  }
  float best = lane < scores.outputs ? logits[lane] : float_value(0xff800000);
  int index = lane < scores.outputs ? lane : scores.outputs;
  for (int c = lane + kWarpSize; c < scores.outputs; c += kWarpSize)
    if (beats(logits[c], c, best, index)) {
      best = logits[c];
      index = c;
    }
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(0xffffffff, best, distance);
    const int other_index = __shfl_xor_sync(0xffffffff, index, distance);
    if (beats(other, other_index, best, index)) {
      best = other;
      index = other_index;
    }
  }
  if (lane == 0 && index == scores.labels[image]) atomicAdd(&scores.correct[subnet], 1);
}

}  // namespace rlal::cuda
