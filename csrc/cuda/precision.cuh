// The precisions of the evaluator. Activations are stored in chunks of 16 bytes: 8 channels of a
// pixel in 16 bits each, or 4 in 32. Sums, biases, depthwise weights and logits are float in each.
#pragma once

#include "cuda/plan.h"
#include "cuda/ptx.cuh"

namespace rlal::cuda {

constexpr int kChunkBytes = 16;

// float32 throughout, without tensor cores.
struct Fp32 {
  using Stored = float;
  static constexpr bool kTensorCores = false;
  __device__ static float value(Stored x) { return x; }
  __device__ static Stored rounded(float x) { return x; }
};

struct Tf32 {
  using Stored = float;
  static constexpr bool kTensorCores = true;
  __device__ static float value(Stored x) { return x; }
  __device__ static Stored rounded(float x) { return tf32_rounded(x); }
  __device__ static void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_tf32(c, a, b);
  }
};

struct Fp16 {
  using Stored = uint16_t;
  static constexpr bool kTensorCores = true;
  __device__ static float value(Stored x) { return half_value(x); }
  __device__ static Stored rounded(float x) { return half_bits(x); }
  __device__ static void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_half(c, a, b);
  }
};

struct Bf16 {
  using Stored = uint16_t;
  static constexpr bool kTensorCores = true;
  __device__ static float value(Stored x) { return bfloat_value(x); }
  __device__ static Stored rounded(float x) { return bfloat_bits(x); }
  __device__ static void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_bfloat(c, a, b);
  }
};

// Host: calls work(P{}) with the precision's own type.
template <typename Work>
void in_precision(Precision precision, const Work& work) {
  switch (precision) {
    case Precision::fp32:
      return work(Fp32{});
    case Precision::tf32:
      return work(Tf32{});
    case Precision::fp16:
      return work(Fp16{});
    case Precision::bf16:
      return work(Bf16{});
  }
}

template <class P>
constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(typename P::Stored));

// N values that lie side by side, moved in one access; N * sizeof(Stored) is 4, 8 or 16.
template <class P, int N>
struct alignas(sizeof(typename P::Stored) * N) Values {
  typename P::Stored at[N];
};

template <class P, int N>
__device__ __forceinline__ Values<P, N>* values_at(unsigned char* address) {
  return reinterpret_cast<Values<P, N>*>(address);
}

template <class P, int N>
__device__ __forceinline__ const Values<P, N>* values_at(const unsigned char* address) {
  return reinterpret_cast<const Values<P, N>*>(address);
}

}  // namespace rlal::cuda
