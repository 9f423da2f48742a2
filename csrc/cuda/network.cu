// One block carries one or a few images through a whole sub-network. Activations stay in shared
// memory, weights come through the L2 cache; device memory sees each image once, and one counter.
#include "cuda/kernels.h"
#include "cuda/operations.cuh"
#include "cuda/runtime.h"
#include "cuda/score.cuh"

namespace rlal::cuda {
namespace {

// Shared memory: zeros, the current and the next operation, activations.
static_assert(kSharedHead == kChunkBytes + 2 * sizeof(OpPlan), "see plan.h");
static_assert(sizeof(OpPlan) % 4 == 0 && alignof(OpPlan) <= 16, "copied word by word");

__device__ void fetch_plan(OpPlan* to, const OpPlan* from) {
  constexpr int kWords = sizeof(OpPlan) / 4;
  for (int i = static_cast<int>(threadIdx.x); i < kWords; i += static_cast<int>(blockDim.x))
    reinterpret_cast<uint32_t*>(to)[i] = reinterpret_cast<const uint32_t*>(from)[i];
}

// The block's images; places of images that there are not become zero.
__device__ void fetch_images(const NetworkArgs& a, int64_t first, int count, unsigned char* to) {
  const int64_t chunks = a.image_bytes / kChunkBytes * a.images_per_block;
  const int64_t present = a.image_bytes / kChunkBytes * count;
  const unsigned char* from = a.images + first * a.image_bytes;
  for (int64_t i = threadIdx.x; i < chunks; i += blockDim.x)
    copy_async(to + i * kChunkBytes, from + (i < present ? i : 0) * kChunkBytes, i < present);
  commit_copies();
  wait_for_copies<0>();
}

template <class P>
__device__ void run_op(const OpPlan& op, const Operands& x, const unsigned char* zeros) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (op.kind != OpKind::conv) return run_simple<P>(op, x, {thread, threads});
  if constexpr (P::kTensorCores)
    conv_on_tensor_cores<P>(op, x, zeros,
                            {uniform_in_warp(thread / kWarpSize), threads / kWarpSize});
  else
    conv_direct(op, x, {thread, threads});
}

template <class P>
__global__ void __launch_bounds__(kMostThreads, 1) network_kernel(NetworkArgs a) {
  unsigned char* shared = shared_memory();
  const int thread = static_cast<int>(threadIdx.x);
  auto* plans = reinterpret_cast<OpPlan*>(shared + kChunkBytes);
  unsigned char* activations = shared + kSharedHead;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * a.images_per_block;
  const int64_t left = a.image_count - first;
  const int count = left < a.images_per_block ? static_cast<int>(left) : a.images_per_block;
  const int subnet = a.subnets[blockIdx.y];
  const OpPlan* program = a.ops + static_cast<int64_t>(subnet) * a.op_count;

  if (thread < kChunkBytes / 4) reinterpret_cast<uint32_t*>(shared)[thread] = 0;
  fetch_plan(&plans[0], program);
  __syncthreads();
  fetch_images(a, first, count, activations + plans[0].in.offset * a.images_per_block);
  Operands x{};
  for (int i = 0; i < a.op_count; ++i) {
    __syncthreads();
    const OpPlan& op = plans[i % 2];
    if (i + 1 < a.op_count) fetch_plan(&plans[(i + 1) % 2], program + i + 1);
    x.in = activations + op.in.offset * a.images_per_block;
    x.out = activations + op.out.offset * a.images_per_block;
    x.residual = op.residual == kNone ? nullptr : activations + op.residual * a.images_per_block;
    x.in_stride = op.in.image_bytes;
    x.out_stride = op.out.image_bytes;
    x.weights = a.packed + op.weights;
    x.bias = reinterpret_cast<const float*>(a.packed + op.bias);
    x.sources = reinterpret_cast<const int32_t*>(a.descriptors + op.sources);
    x.images = a.images_per_block;
    run_op<P>(op, x, shared);
  }
  __syncthreads();
  for (int i = thread / kWarpSize; i < count; i += static_cast<int>(blockDim.x) / kWarpSize)
    score_image(reinterpret_cast<const float*>(x.out + i * x.out_stride), first + i, subnet,
                a.scores);
}

}  // namespace

void run_network(const NetworkArgs& args, Precision precision, int subnets, int threads,
                 int64_t shared_bytes, Stream stream) {
  const int64_t blocks = (args.image_count + args.images_per_block - 1) / args.images_per_block;
  in_precision(precision, [&](auto p) {
    launch({"network_kernel", {blocks, subnets}, threads, shared_bytes, stream},
           network_kernel<decltype(p)>, args);
  });
}

}  // namespace rlal::cuda
