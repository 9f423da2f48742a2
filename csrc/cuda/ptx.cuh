// All inline PTX of the project, each with the same thing said in C++ for the emulator.
//
// Lane layouts are those of the PTX ISA, section "Warp Level Matrix Instructions"; g = lane / 4 and
// t = lane % 4 throughout. The shapes m16n8k16 (fp16, bf16) and m16n8k8 (tf32) are the same in
// bytes:
//   A, 16 rows of 32 bytes: a[0], a[1] hold bytes 4t.. of rows g and g + 8, a[2], a[3] bytes 16 +
//   4t.. B, 8 columns of 32 bytes: b[0] holds bytes 4t.. of column g, b[1] bytes 16 + 4t.. C, 16
//   rows of 8 floats: c[0], c[1] are columns 2t, 2t + 1 of row g, c[2], c[3] of row g + 8.
#pragma once

#include "cuda/device.cuh"

namespace rlal::cuda {

// ---- numbers of 16 bits ----

#ifdef RLAL_FAST_CUDA_EMULATED

inline uint16_t half_bits(float value) {
  const auto rounded = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &rounded, sizeof(bits));
  return bits;
}

inline float half_value(uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, sizeof(bits));
  return static_cast<float>(value);
}

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_value(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}

inline uint16_t bfloat_bits(float value) {
  const uint32_t bits = float_bits(value);
  if (value != value) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // ties to even
}

inline float bfloat_value(uint16_t bits) { return float_value(static_cast<uint32_t>(bits) << 16); }

// To 10 bits of mantissa, ties away from zero.
inline float tf32_rounded(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7f800000) == 0x7f800000) return value;
  return float_value((bits + 0x1000) & 0xffffe000);
}

#else

__device__ inline uint16_t half_bits(float value) {
  return __half_as_ushort(__float2half_rn(value));
}
__device__ inline float half_value(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
__device__ inline uint32_t float_bits(float value) { return __float_as_uint(value); }
__device__ inline float float_value(uint32_t bits) { return __uint_as_float(bits); }
__device__ inline uint16_t bfloat_bits(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
__device__ inline float bfloat_value(uint16_t bits) {
  return __bfloat162float(__ushort_as_bfloat16(bits));
}
__device__ inline float tf32_rounded(float value) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return __uint_as_float(rounded);
}

#endif

// ---- the larger and the smaller of two numbers; NaN if one is ----

#ifdef RLAL_FAST_CUDA_EMULATED

inline float larger(float a, float b) { return a > b || a != a ? a : b; }
inline float smaller(float a, float b) { return a < b || a != a ? a : b; }

#else

__device__ inline float larger(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
__device__ inline float smaller(float a, float b) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

#endif

// ---- matrix products of one warp: c += a * b, sums in float ----

#ifdef RLAL_FAST_CUDA_EMULATED

struct Factors {
  uint32_t a[4], b[2];
  float c[4];
};

struct Sums {
  float c[4];
};

// VALUE decodes number i of a word; products are summed one after the other, in float.
template <float (*VALUE)(uint32_t, int), int PER_WORD>
void multiply(const Factors (&in)[32], Sums (&out)[32]) {
  constexpr int kDepth = 8 * PER_WORD;
  float a[16][kDepth], b[kDepth][8];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < PER_WORD; ++i) {
      const int g = lane / 4, first = lane % 4 * PER_WORD + i, second = first + 4 * PER_WORD;
      a[g][first] = VALUE(in[lane].a[0], i);
      a[g + 8][first] = VALUE(in[lane].a[1], i);
      a[g][second] = VALUE(in[lane].a[2], i);
      a[g + 8][second] = VALUE(in[lane].a[3], i);
      b[first][g] = VALUE(in[lane].b[0], i);
      b[second][g] = VALUE(in[lane].b[1], i);
    }
  for (int row = 0; row < 16; ++row) {
    float sum[8];
    for (int n = 0; n < 8; ++n) sum[n] = in[row % 8 * 4 + n / 2].c[row / 8 * 2 + n % 2];
    for (int k = 0; k < kDepth; ++k)
      for (int n = 0; n < 8; ++n) sum[n] += a[row][k] * b[k][n];
    for (int n = 0; n < 8; ++n) out[row % 8 * 4 + n / 2].c[row / 8 * 2 + n % 2] = sum[n];
  }
}

inline float half_of(uint32_t word, int i) {
  return half_value(static_cast<uint16_t>(word >> 16 * i));
}
inline float bfloat_of(uint32_t word, int i) {
  return bfloat_value(static_cast<uint16_t>(word >> 16 * i));
}
inline float tf32_of(uint32_t word, int) { return float_value(word & 0xffffe000); }

template <float (*VALUE)(uint32_t, int), int PER_WORD>
void emulated_mma(const char* name, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Factors in;
  std::memcpy(in.a, a, sizeof(a));
  std::memcpy(in.b, b, sizeof(b));
  std::memcpy(in.c, c, sizeof(c));
  const Sums out = emulator::warp_operation<Factors, Sums, multiply<VALUE, PER_WORD>>(name, in);
  std::memcpy(c, out.c, sizeof(c));
}

inline void mma_half(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated_mma<half_of, 2>("mma.m16n8k16.f16", c, a, b);
}
inline void mma_bfloat(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated_mma<bfloat_of, 2>("mma.m16n8k16.bf16", c, a, b);
}
inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated_mma<tf32_of, 1>("mma.m16n8k8.tf32", c, a, b);
}

#else

#define RLAL_FAST_MMA(name, instruction)                                                       \
  __device__ inline void name(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm volatile("mma.sync.aligned." instruction                                               \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"            \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));          \
  }
RLAL_FAST_MMA(mma_half, "m16n8k16.row.col.f32.f16.f16.f32")
RLAL_FAST_MMA(mma_bfloat, "m16n8k16.row.col.f32.bf16.bf16.f32")
RLAL_FAST_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef RLAL_FAST_MMA

#endif

// ---- what is the same in all lanes of a warp ----
//
// The compiler cannot know that it is, and would guard each warp operation that depends on it.

#ifdef RLAL_FAST_CUDA_EMULATED

inline void from_lane_0(const int (&in)[32], int (&out)[32]) {
  for (int& value : out) value = in[0];
}
inline int uniform_in_warp(int value) {
  return emulator::warp_operation<int, int, from_lane_0>("__shfl_sync", value);
}

#else

__device__ inline int uniform_in_warp(int value) { return __shfl_sync(0xffffffff, value, 0); }

#endif

// ---- the A operand out of shared memory ----
//
// Lane l hands in where 16 bytes of row l % 16 lie: the row's first ones where l < 16, else its
// last.

#ifdef RLAL_FAST_CUDA_EMULATED

// A place in shared memory: 32 bits are enough on a GPU, and half as much arithmetic.
using SharedPlace = const unsigned char*;
inline SharedPlace shared_place(const unsigned char* pointer) { return pointer; }

struct Words {
  uint32_t word[4];
};

inline void distribute(const Words (&rows)[32], Words (&out)[32]) {
  for (int lane = 0; lane < 32; ++lane)
    for (int matrix = 0; matrix < 4; ++matrix)
      out[lane].word[matrix] = rows[matrix * 8 + lane / 4].word[lane % 4];
}

inline void load_matrix(uint32_t (&a)[4], SharedPlace row) {
  Words in;
  std::memcpy(in.word, row, sizeof(in.word));
  const Words out = emulator::warp_operation<Words, Words, distribute>("ldmatrix", in);
  std::memcpy(a, out.word, sizeof(a));
}

#else

using SharedPlace = uint32_t;
__device__ inline SharedPlace shared_place(const unsigned char* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline void load_matrix(uint32_t (&a)[4], SharedPlace row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(row));
}

#endif

// ---- asynchronous copies into shared memory ----
//
// 16 bytes, both ends aligned to 16; zeros where `from` is not to be read (it must be an address
// all the same). What has been committed as a group arrives at a wait that leaves no more than
// IN_FLIGHT later groups; other threads see it after a barrier.

#ifdef RLAL_FAST_CUDA_EMULATED

inline void copy_async(unsigned char* to, const unsigned char* from, bool read) {
  emulator::copy_async(to, read ? from : nullptr, 16);
}
inline void commit_copies() { emulator::commit_copies(); }
template <int IN_FLIGHT>
void wait_for_copies() {
  emulator::wait_for_copies(IN_FLIGHT);
}

#else

__device__ inline void copy_async(unsigned char* to, const unsigned char* from, bool read) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_place(to)), "l"(from),
               "r"(read ? 16 : 0)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int IN_FLIGHT>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(IN_FLIGHT) : "memory");
}

#endif

}  // namespace rlal::cuda
