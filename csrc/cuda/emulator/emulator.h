// Runs CUDA kernels on the CPU, so that the kernels can be tested on machines without a GPU.
//
// The .cu files are compiled as C++ with this header in place of CUDA's own. Every thread of a
// block is a fiber; a block runs until all its threads wait at a barrier or have ended, one block
// after the other, in a random order that is the same in each run. It is meant to find mistakes:
//   - shared memory starts as NaN (all bits set), in every block;
//   - between two barriers the warps take turns in a random order;
//   - asynchronous copies are delivered at their wait and not before;
//   - a barrier or warp operation that some threads never reach is an error, not a hang.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

// NOLINTBEGIN(bugprone-reserved-identifier): CUDA's names
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

namespace rlal::emulator {

constexpr int kWarp = 32;

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

struct Launch {
  Dim3 grid;
  int threads;
  int64_t shared_bytes;
};

// Throws std::runtime_error for a barrier or warp operation that some threads never reach.
void run(const Launch& launch, const std::function<void()>& kernel);

// What a kernel may ask for; only valid inside run().
Dim3 thread_index();
Dim3 block_index();
Dim3 block_size();
Dim3 grid_size();
unsigned char* shared_memory();
void barrier();
void copy_async(void* to, const void* from, int bytes);  // from null: zeros
void commit_copies();
void wait_for_copies(int groups_in_flight);

constexpr int kMostOperandBytes = 128;

// Hands in this lane's operands and returns when all lanes of the warp have done so; the last one
// calls combine(operands of all lanes, results of all lanes).
using Combine = void (*)(const unsigned char* in, unsigned char* out);
void warp_operation(const char* name, const void* in, int in_bytes, void* out, int out_bytes,
                    Combine combine);

template <typename In, typename Out>
using CombineTyped = void (*)(const In (&in)[kWarp], Out (&out)[kWarp]);

template <typename In, typename Out, CombineTyped<In, Out> COMBINE>
Out warp_operation(const char* name, const In& in) {
  static_assert(std::is_trivially_copyable<In>::value && std::is_trivially_copyable<Out>::value,
                "operands are copied as bytes");
  static_assert(sizeof(In) <= kMostOperandBytes && sizeof(Out) <= kMostOperandBytes, "too large");
  Out out;
  warp_operation(name, &in, sizeof(In), &out, sizeof(Out),
                 [](const unsigned char* from, unsigned char* to) {
                   In ins[kWarp];
                   Out outs[kWarp];
                   std::memcpy(&ins, from, sizeof(ins));
                   COMBINE(ins, outs);
                   std::memcpy(to, &outs, sizeof(outs));
                 });
  return out;
}

template <typename T>
struct Shuffled {
  T value;
  unsigned lane_mask;
};

template <typename T>
void exchange(const Shuffled<T> (&in)[kWarp], T (&out)[kWarp]) {
  for (int lane = 0; lane < kWarp; ++lane) out[lane] = in[lane ^ in[lane].lane_mask].value;
}

}  // namespace rlal::emulator

#define threadIdx (::rlal::emulator::thread_index())
#define blockIdx (::rlal::emulator::block_index())
#define blockDim (::rlal::emulator::block_size())
#define gridDim (::rlal::emulator::grid_size())

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline void __syncthreads() { ::rlal::emulator::barrier(); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int lane_mask) {
  using namespace ::rlal::emulator;
  return warp_operation<Shuffled<T>, T, exchange<T>>("__shfl_xor_sync",
                                                     {value, static_cast<unsigned>(lane_mask)});
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}

template <typename T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}
// NOLINTEND(bugprone-reserved-identifier)
