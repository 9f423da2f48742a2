// One launch for each operation, activations in device memory: for images whose activations are too
// large for shared memory, and as a rival to the whole-network kernel.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/operations.cuh"
#include "cuda/runtime.h"
#include "cuda/score.cuh"

namespace rlal::cuda {
namespace {

__device__ int64_t first_image(const Cursor& cursor) {
  return cursor.index == nullptr ? 0 : static_cast<int64_t>(*cursor.index) * cursor.batch;
}

__device__ int images_of(const Cursor& cursor) {
  const int64_t left = cursor.total - first_image(cursor);
  return left < cursor.batch ? static_cast<int>(left < 0 ? 0 : left) : cursor.batch;
}

__device__ const unsigned char* tensor_at(const LayerArgs& a, int64_t offset, int64_t stride) {
  if (offset == kNone) return nullptr;
  if (offset == kImages) return a.images + first_image(a.cursor) * stride;
  return a.activations + offset * a.cursor.batch;
}

__device__ Operands operands_of(const LayerArgs& a) {
  Operands x{};
  x.in = tensor_at(a, a.op.in.offset, a.op.in.image_bytes);
  x.out = a.activations + a.op.out.offset * a.cursor.batch;
  x.residual = tensor_at(a, a.op.residual, a.op.out.image_bytes);
  x.in_stride = a.op.in.image_bytes;
  x.out_stride = a.op.out.image_bytes;
  x.weights = a.packed + a.op.weights;
  x.bias = reinterpret_cast<const float*>(a.packed + a.op.bias);
  x.sources = reinterpret_cast<const int32_t*>(a.descriptors + a.op.sources);
  x.images = images_of(a.cursor);
  return x;
}

constexpr int kThreads = 256;

template <class P>
__global__ void __launch_bounds__(kThreads, 3) simple_kernel(LayerArgs a) {
  const Worker worker{static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x),
                      static_cast<int>(gridDim.x * blockDim.x)};
  run_simple<P>(a.op, operands_of(a), worker);
}

__global__ void __launch_bounds__(kThreads, 3) direct_kernel(LayerArgs a) {
  const Worker worker{static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x),
                      static_cast<int>(gridDim.x * blockDim.x)};
  conv_direct(a.op, operands_of(a), worker);
}

// ---- dense convolutions on tensor cores, operands staged by asynchronous copies ----
//
// A block makes 128 output pixels x 8 NT outputs. Slabs of the sum, two k steps each, come into a
// ring of stages: the input as [4 chunks][128 rows][16 bytes], the weights as fragments.

constexpr int kRows = 128, kConvThreads = 128, kStages = 4, kSlabSteps = 2, kSlabChunks = 4;
constexpr int kInputBytes = kSlabChunks * kRows * kChunkBytes;
constexpr int kFragmentBytes = kWarpSize * static_cast<int>(sizeof(Fragment));

template <int NT>
constexpr int kStageBytes = kInputBytes + kSlabSteps * NT * kFragmentBytes;

// The thread's part of one slab: its row's chunks, and a share of the weights.
template <int NT>
__device__ __forceinline__ void fetch_slab(const OpPlan& op, const Operands& x, const Row& row,
                                           const unsigned char* window, Walk* walk, int slab,
                                           int n_tile, int n_count, unsigned char* stage) {
  const int thread = static_cast<int>(threadIdx.x);
  const Taps taps(op);
#pragma unroll
  for (int c = 0; c < kSlabChunks; ++c) {
    const Step<int64_t> step(taps, *walk);
    const bool inside = step.inside(taps, row.top, row.left);
    copy_async(stage + (c * kRows + thread) * kChunkBytes, inside ? window + step.offset : x.in,
               inside);
    walk->advance(taps, 1);
  }
  constexpr int kChunksOfTile = kFragmentBytes / kChunkBytes;
#pragma unroll
  for (int i = 0; i < (kSlabSteps * NT * kChunksOfTile + kConvThreads - 1) / kConvThreads; ++i) {
    const int index = i * kConvThreads + thread;
    const int step = index / (NT * kChunksOfTile), n = index / kChunksOfTile % NT;
    const int k_step = slab * kSlabSteps + step;
    if (step >= kSlabSteps) continue;
    const bool there = n < n_count && k_step < op.k_steps;
    const int64_t from = (static_cast<int64_t>(k_step) * op.n_tiles + n_tile + n) * kFragmentBytes +
                         index % kChunksOfTile * kChunkBytes;
    copy_async(stage + kInputBytes + index * kChunkBytes, x.weights + (there ? from : 0), there);
  }
}

template <class P, int NT>
__device__ __forceinline__ void multiply_slab(const unsigned char* stage, int n_count,
                                              float (&sum)[2][NT][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
#pragma unroll
  for (int step = 0; step < kSlabSteps; ++step) {
    uint32_t a[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m)
      load_matrix(a[m], shared_place(stage) +
                            ((step * 2 + lane / 16) * kRows + warp * 32 + m * 16 + lane % 16) *
                                kChunkBytes);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      if (n >= n_count) continue;
      const Fragment b = *reinterpret_cast<const Fragment*>(
          stage + kInputBytes + (step * NT + n) * kFragmentBytes +
          lane * static_cast<int>(sizeof(Fragment)));
#pragma unroll
      for (int m = 0; m < 2; ++m) P::mma(sum[m][n], a[m], b.b);
    }
  }
}

template <class P, int NT>
__global__ void __launch_bounds__(kConvThreads) conv_kernel(LayerArgs a) {
  const Operands x = operands_of(a);
  const int first_row = static_cast<int>(blockIdx.x) * kRows;
  if (first_row >= x.images * out_pixels(a.op)) return;
  const int group = static_cast<int>(blockIdx.y), groups = static_cast<int>(gridDim.y);
  const int n_tile = group * a.op.n_tiles / groups;
  const int n_count = (group + 1) * a.op.n_tiles / groups - n_tile;
  unsigned char* shared = shared_memory();
  const Row row = row_at(a.op, x.images, first_row + static_cast<int>(threadIdx.x));
  const unsigned char* window = x.in + window_offset(a.op, x, row);
  const int slabs = (a.op.k_steps + kSlabSteps - 1) / kSlabSteps;
  Walk walk{0, 0, 0};
  const auto fetch = [&](int slab) {
    if (slab < slabs)
      fetch_slab<NT>(a.op, x, row, window, &walk, slab, n_tile, n_count,
                     shared + slab % kStages * kStageBytes<NT>);
    commit_copies();  // an empty group keeps the count of groups in flight
  };
  for (int slab = 0; slab < kStages - 1; ++slab) fetch(slab);
  float sum[2][NT][4] = {};
  for (int slab = 0; slab < slabs; ++slab) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // this slab has arrived, and all have left the stage that is filled next
    fetch(slab + kStages - 1);
    multiply_slab<P, NT>(shared + slab % kStages * kStageBytes<NT>, n_count, sum);
  }
  wait_for_copies<0>();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  finish_tiles<P>(a.op, x, first_row / 16 + warp * 2, n_tile, n_count, sum);
}

template <class P, int NT>
void launch_conv(const LayerArgs& args, const char* name, Stream stream) {
  const int64_t rows =
      static_cast<int64_t>(args.cursor.batch) * args.op.out.height * args.op.out.width;
  const Grid grid{(rows + kRows - 1) / kRows, (args.op.n_tiles + NT - 1) / NT};
  launch({name, grid, kConvThreads, int64_t{kStages} * kStageBytes<NT>, stream}, conv_kernel<P, NT>,
         args);
}

// Enough blocks for every item, but no more than keep a large device busy.
int64_t blocks_for(int64_t items) {
  constexpr int64_t kMost = 4096;
  return std::max<int64_t>(1, std::min(kMost, (items + kThreads - 1) / kThreads));
}

template <class P>
void run_layer_in(const LayerArgs& args, Stream stream) {
  const OpPlan& op = args.op;
  const int64_t pixels = static_cast<int64_t>(args.cursor.batch) * op.out.height * op.out.width;
  if (op.kind != OpKind::conv)
    return launch({"simple_kernel", {blocks_for(pixels * op.out.chunks)}, kThreads, 0, stream},
                  simple_kernel<P>, args);
  if constexpr (P::kTensorCores) {
    if (op.n_tiles <= 2) return launch_conv<P, 2>(args, "conv_kernel<2>", stream);
    if (op.n_tiles <= 4) return launch_conv<P, 4>(args, "conv_kernel<4>", stream);
    return launch_conv<P, 8>(args, "conv_kernel<8>", stream);
  } else {
    const int64_t threads = (pixels + kDirectPixels - 1) / kDirectPixels * op.n_tiles;
    return launch({"direct_kernel", {blocks_for(threads)}, kThreads, 0, stream}, direct_kernel,
                  args);
  }
}

__global__ void __launch_bounds__(kThreads) score_kernel(ScoreArgs a) {
  const int images = images_of(a.cursor);
  const int64_t first = first_image(a.cursor);
  const int warp = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) / kWarpSize;
  for (int i = warp; i < images; i += static_cast<int>(gridDim.x) * kThreads / kWarpSize)
    score_image(reinterpret_cast<const float*>(a.activations + a.offset * a.cursor.batch +
                                               i * a.image_bytes),
                first + i, a.subnet, a.scores);
}

// On its own, as all blocks of the last kernel must have read the cursor.
__global__ void advance_kernel(Cursor cursor) {
  if (threadIdx.x == 0) *cursor.index += 1;
}

}  // namespace

void run_layer(const LayerArgs& args, Precision precision, Stream stream) {
  in_precision(precision, [&](auto p) { run_layer_in<decltype(p)>(args, stream); });
}

void score_layer(const ScoreArgs& args, Stream stream) {
  const int64_t warps = args.cursor.batch;
  launch({"score_kernel", {blocks_for(warps * kWarpSize)}, kThreads, 0, stream}, score_kernel,
         args);
  if (args.cursor.index != nullptr)
    launch({"advance_kernel", {1}, kWarpSize, 0, stream}, advance_kernel, args.cursor);
}

}  // namespace rlal::cuda
