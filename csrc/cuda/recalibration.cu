// The statistics of a batch norm on one batch of images, for one sub-network.
#include <algorithm>
#include <cmath>

#include "cuda/kernels.h"
#include "cuda/operations.cuh"
#include "cuda/runtime.h"

namespace rlal::cuda {
namespace {

constexpr int kThreads = 256, kMostSplits = 64, kItemsPerThread = 4;

// blockIdx.x: chunk; blockIdx.y: split, a part of the pixels. Sums and squares in double, so that
// the square of the mean may be taken from the mean of the squares. partials [channel][split][sum,
// squares]
template <class P>
__global__ void __launch_bounds__(kThreads) moments_kernel(NormArgs a) {
  constexpr int C = kChunk<P>;
  const int pixels = out_pixels(a.op), chunk = static_cast<int>(blockIdx.x);
  const int64_t items = a.images * pixels;
  double sums[2 * C] = {};
  for (int64_t i = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x; i < items;
       i += static_cast<int64_t>(gridDim.y) * blockDim.x) {
    const int64_t image = i / pixels, pixel = i % pixels;
    const Values<P, C> values =
        *values_at<P, C>(a.activations + a.op.out.offset * a.images + image * a.op.out.image_bytes +
                         (static_cast<int64_t>(chunk) * pixels + pixel) * kChunkBytes);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const double value = P::value(values.at[c]);
      sums[2 * c] += value;
      sums[2 * c + 1] += value * value;
    }
  }
  auto* shared = reinterpret_cast<double*>(shared_memory());  // [warp][2 C]
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
#pragma unroll
  for (int k = 0; k < 2 * C; ++k) {
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2)
      sums[k] += __shfl_xor_sync(0xffffffff, sums[k], distance);
    if (lane == 0) shared[warp * 2 * C + k] = sums[k];
  }
  __syncthreads();
  const int k = static_cast<int>(threadIdx.x);
  if (k >= 2 * C) return;
  double sum = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarpSize; ++w) sum += shared[w * 2 * C + k];
  const int64_t channel = static_cast<int64_t>(chunk) * C + k / 2;
  a.partials[(channel * gridDim.y + blockIdx.y) * 2 + k % 2] = sum;
}

// One thread for each channel: the batch norm as a scale and a shift, with the biased variance for
// the images that pass and with the unbiased one for later.
__global__ void __launch_bounds__(kThreads) norm_kernel(NormArgs a, int padded, int splits) {
  const int channel = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (channel >= a.op.out.channels) return;
  double sum = 0, squares = 0;
  for (int split = 0; split < splits; ++split) {
    const double* part = a.partials + (static_cast<int64_t>(channel) * splits + split) * 2;
    sum += part[0];
    squares += part[1];
  }
  const auto count = static_cast<double>(a.images * out_pixels(a.op));
  const double mean = sum / count, difference = squares / count - mean * mean;
  const double variance = difference < 0 ? 0 : difference;
  const double unbiased = count > 1 ? count / (count - 1) : 1;
  const int kept = reinterpret_cast<const int32_t*>(a.descriptors + a.norm.kept_out)[channel];
  const double weight = a.full[a.norm.full + kept];
  const double bias = a.full[a.norm.full + a.norm.full_channels + kept];
  const auto write = [&](int64_t at, double spread) {
    const double scale = weight / sqrt(spread + a.norm.eps);
    a.corrections[at + channel] = static_cast<float>(scale);
    a.corrections[at + padded + channel] = static_cast<float>(bias - mean * scale);
  };
  write(a.norm.passing, variance);
  write(a.norm.corrected, variance * unbiased);
}

template <class P>
void measure_in(const NormArgs& args, Stream stream) {
  constexpr int kValues = 2 * kChunk<P> * kThreads / kWarpSize;
  const int64_t items = args.images * args.op.out.height * args.op.out.width;
  const int splits = static_cast<int>(
      std::min<int64_t>(kMostSplits, 1 + items / (int64_t{kThreads} * kItemsPerThread)));
  const int threads = static_cast<int>(
      std::min<int64_t>(kThreads, (items + kWarpSize - 1) / kWarpSize * kWarpSize));
  launch({"moments_kernel", {args.op.out.chunks, splits}, threads, kValues * int64_t{8}, stream},
         moments_kernel<P>, args);
  const int padded = args.op.out.chunks * kChunk<P>;
  launch({"norm_kernel", {(padded + kThreads - 1) / kThreads}, kThreads, 0, stream}, norm_kernel,
         args, padded, splits);
}

}  // namespace

int64_t partial_doubles(int64_t channels) { return channels * kMostSplits * 2; }

void measure_norm(const NormArgs& args, Precision precision, Stream stream) {
  in_precision(precision, [&](auto p) { measure_in<decltype(p)>(args, stream); });
}

}  // namespace rlal::cuda
