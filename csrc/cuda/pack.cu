// Compact weights, in the order in which the kernels read them, and images in chunks.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/operations.cuh"
#include "cuda/runtime.h"

namespace rlal::cuda {
namespace {

constexpr int kThreads = 256;

// What a kept output is multiplied by, and what is added.
__device__ float2 correction(const PackArgs& a, const PackPlan& p, int output) {
  if (a.corrections == nullptr || p.corrected < 0) return {1, 0};
  const int padded = (p.outputs + p.chunk - 1) / p.chunk * p.chunk;
  return {a.corrections[p.corrected + output], a.corrections[p.corrected + padded + output]};
}

// The full weight behind a kept output, a kept input and a tap; 0 for what only fills up.
__device__ float weight_at(const PackArgs& a, const PackPlan& p, int output, int input, int tap) {
  if (output >= p.outputs || input >= p.inputs || tap >= p.taps) return 0;
  const auto* kept_out = reinterpret_cast<const int32_t*>(a.descriptors + p.kept_out);
  const auto* kept_in = reinterpret_cast<const int32_t*>(a.descriptors + p.kept_in);
  return correction(a, p, output).x *
         a.full[p.full_weights +
                (static_cast<int64_t>(kept_out[output]) * p.full_inputs + kept_in[input]) * p.taps +
                tap];
}

// A word of B fragments: one float, or two numbers of 16 bits.
template <class P>
__device__ uint32_t fragment_word(const PackArgs& a, const PackPlan& p, int64_t index) {
  const int part = static_cast<int>(index % 2), lane = static_cast<int>(index / 2 % kWarpSize);
  const int64_t product = index / (2 * kWarpSize);
  const int output = static_cast<int>(product % p.n_tiles) * 8 + lane / 4;
  const int pair = static_cast<int>(product / p.n_tiles) * 2 + part;  // of tap and chunk
  const int tap = pair / p.in_chunks, chunk = pair % p.in_chunks;
  if constexpr (sizeof(typename P::Stored) == 4) {
    return float_bits(P::rounded(weight_at(a, p, output, chunk * 4 + lane % 4, tap)));
  } else {
    const int input = chunk * 8 + lane % 4 * 2;
    const uint32_t low = P::rounded(weight_at(a, p, output, input, tap));
    const uint32_t high = P::rounded(weight_at(a, p, output, input + 1, tap));
    return low | high << 16;
  }
}

// A float of [n_tile][tap][in chunk][8 outputs][4 inputs].
__device__ float direct_weight(const PackArgs& a, const PackPlan& p, int64_t index) {
  const int within = static_cast<int>(index % 32);
  const int64_t product = index / 32;
  const int pair = static_cast<int>(product % p.k_steps);
  return weight_at(a, p, static_cast<int>(product / p.k_steps) * 8 + within / 4,
                   pair % p.in_chunks * 4 + within % 4, pair / p.in_chunks);
}

// A float of [tap][channel].
__device__ float channel_weight(const PackArgs& a, const PackPlan& p, int64_t index) {
  const int channels = p.in_chunks * p.chunk;
  const int output = static_cast<int>(index % channels), tap = static_cast<int>(index / channels);
  if (output >= p.outputs) return 0;
  const auto* kept_out = reinterpret_cast<const int32_t*>(a.descriptors + p.kept_out);
  return correction(a, p, output).x *
         a.full[p.full_weights + static_cast<int64_t>(kept_out[output]) * p.taps + tap];
}

template <class P>
__device__ uint32_t packed_word(const PackArgs& a, const PackPlan& p, int64_t index) {
  if (p.kind != OpKind::conv) return float_bits(channel_weight(a, p, index));
  if constexpr (P::kTensorCores) return fragment_word<P>(a, p, index);
  return float_bits(direct_weight(a, p, index));
}

// blockIdx.y and .z: which packing
template <class P>
__global__ void __launch_bounds__(kThreads) pack_kernel(PackArgs a, int64_t packings) {
  const int64_t packing = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  if (packing >= packings) return;
  const PackPlan& p = a.packs[packing];
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  auto* words = reinterpret_cast<uint32_t*>(a.packed + p.weights);
  for (int64_t i = thread; i < p.words; i += threads) words[i] = packed_word<P>(a, p, i);
  if (p.full_bias < 0) return;
  auto* bias = reinterpret_cast<float*>(a.packed + p.bias);
  const auto* kept_out = reinterpret_cast<const int32_t*>(a.descriptors + p.kept_out);
  for (int64_t i = thread; i < (p.outputs + 7) / 8 * 8; i += threads)
    if (i < p.outputs) {
      const float2 by = correction(a, p, static_cast<int>(i));
      bias[i] = a.full[p.full_bias + kept_out[i]] * by.x + by.y;
    } else {
      bias[i] = 0;
    }
}

// Image values to chunks and back: one thread for one chunk of one pixel.
template <class P, bool LOAD>
__global__ void __launch_bounds__(kThreads)
    images_kernel(float* images, unsigned char* chunks, int64_t count, TensorPlan tensor) {
  constexpr int C = kChunk<P>;
  const int64_t pixels = static_cast<int64_t>(tensor.height) * tensor.width;
  const int64_t items = count * tensor.chunks * pixels;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < items;
       i += threads) {
    const int64_t pixel = i % pixels, plane = i / pixels;
    const int64_t image = plane / tensor.chunks, first = plane % tensor.chunks * C;
    Values<P, C>* const place = values_at<P, C>(chunks + i * kChunkBytes);
    Values<P, C> values{};
    if (!LOAD) values = *place;
    for (int c = 0; c < C; ++c) {
      if (first + c >= tensor.channels) continue;
      float* const value = images + (image * tensor.channels + first + c) * pixels + pixel;
      if (LOAD)
        values.at[c] = P::rounded(*value);
      else
        *value = P::value(values.at[c]);
    }
    if (LOAD) *place = values;
  }
}

template <bool LOAD>
void convert_images(float* images, unsigned char* chunks, int64_t count, const TensorPlan& tensor,
                    Precision precision, Stream stream) {
  const int64_t items = count * tensor.chunks * tensor.height * tensor.width;
  if (items == 0) return;
  const Grid grid{std::min<int64_t>((items + kThreads - 1) / kThreads, 1 << 16)};
  in_precision(precision, [&](auto p) {
    launch({LOAD ? "load_images" : "store_images", grid, kThreads, 0, stream},
           images_kernel<decltype(p), LOAD>, images, chunks, count, tensor);
  });
}

}  // namespace

void load_images(const float* images, int64_t count, const TensorPlan& tensor, Precision precision,
                 unsigned char* out, Stream stream) {
  convert_images<true>(const_cast<float*>(images), out, count, tensor, precision, stream);
}

void store_images(const unsigned char* in, int64_t count, const TensorPlan& tensor,
                  Precision precision, float* images, Stream stream) {
  convert_images<false>(images, const_cast<unsigned char*>(in), count, tensor, precision, stream);
}

void pack(const PackArgs& args, Precision precision, int64_t packings, int64_t most_words,
          Stream stream) {
  if (packings == 0) return;
  constexpr int64_t kWordsPerThread = 8, kMostRows = 1 << 15;
  const int64_t blocks = most_words / (kThreads * kWordsPerThread) + 1;
  const int64_t rows = std::min(packings, kMostRows);
  const Grid grid{std::min<int64_t>(blocks, 256), rows, (packings + rows - 1) / rows};
  in_precision(precision, [&](auto p) {
    launch({"pack_kernel", grid, kThreads, 0, stream}, pack_kernel<decltype(p)>, args, packings);
  });
}

}  // namespace rlal::cuda
