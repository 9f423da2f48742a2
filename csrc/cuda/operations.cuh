// The operations of a network on activations that a worker can read in place: in shared memory (the
// whole-network kernel) or in device memory (layers). Each function does its share of an operation,
// so that blocks and grids of any size can call it.
#pragma once

#include "cuda/plan.h"
#include "cuda/precision.cuh"

namespace rlal::cuda {

// Where an operation reads and writes. Strides are bytes from image to image.
struct Operands {
  const unsigned char* in;
  unsigned char* out;
  const unsigned char* residual;  // or null
  int64_t in_stride, out_stride;
  const unsigned char* weights;
  const float* bias;
  const int32_t* sources;
  int images;
};

// One of many that share an operation.
struct Worker {
  int index, count;
};

__device__ __forceinline__ int out_pixels(const OpPlan& op) { return op.out.height * op.out.width; }

__device__ __forceinline__ float clamped(float x, const OpPlan& op) {
  return x < op.low ? op.low : (x > op.high ? op.high : x);  // NaN stays, as in torch
}

// ---- results: residual, activation, store ----

// N channels from `channel` on, of one pixel; N values lie within one chunk.
template <class P, int N>
__device__ __forceinline__ void finish(const OpPlan& op, const Operands& x, int image, int pixel,
                                       int channel, float (&sum)[N]) {
  if (op.logits) {
    float* logits = reinterpret_cast<float*>(x.out + image * x.out_stride);
    const unsigned char* residual =
        x.residual == nullptr ? nullptr : x.residual + image * op.out.chunks * int64_t{kChunkBytes};
    for (int i = 0; i < N; ++i)
      if (channel + i < op.out.channels) {
        const float added =
            residual == nullptr
                ? 0.0f
                : P::value(reinterpret_cast<const typename P::Stored*>(residual)[channel + i]);
        logits[channel + i] = clamped(sum[i] + added, op);
      }
    return;
  }
  const int64_t place =
      image * x.out_stride +
      (static_cast<int64_t>(channel / kChunk<P>) * out_pixels(op) + pixel) * kChunkBytes +
      channel % kChunk<P> * static_cast<int>(sizeof(typename P::Stored));
  if (x.residual != nullptr) {
    const Values<P, N> added = *values_at<P, N>(x.residual + place);
    for (int i = 0; i < N; ++i) sum[i] += P::value(added.at[i]);
  }
  Values<P, N> result;
  for (int i = 0; i < N; ++i) result.at[i] = P::rounded(clamped(sum[i], op));
  *values_at<P, N>(x.out + place) = result;
}

// ---- dense convolutions on tensor cores: implicit matrix product, m16n8 tiles of one warp ----

// Rows of the product are output pixels of all images, one after the other.
struct Row {
  int image, pixel, top, left;  // of the window in the input
};
constexpr int kNoRow = -(1 << 24);  // as `top` and `left`: after the last row, far outside

__device__ __forceinline__ Row row_at(const OpPlan& op, int images, int index) {
  const int pixels = out_pixels(op);
  if (index >= images * pixels) return {0, 0, kNoRow, kNoRow};
  const int image = index / pixels, pixel = index % pixels;
  const int y = pixel / op.out.width, x = pixel % op.out.width;
  return {image, pixel, y * op.window.stride_h - op.window.pad_h,
          x * op.window.stride_w - op.window.pad_w};
}

// Walks the chunks of the sum: taps one by one, within a tap the input's chunks.
struct Walk {
  int tap_y, tap_x, chunk;

  __device__ __forceinline__ void advance(const OpPlan& op, int by) {
    chunk += by;
    while (chunk >= op.in.chunks) {
      chunk -= op.in.chunks;
      if (++tap_x == op.window.kernel_w) {
        tap_x = 0;
        ++tap_y;
      }
    }
  }
};

// 16 bytes of the input, or null outside the image and after the last tap.
__device__ __forceinline__ const unsigned char* input_chunk(const OpPlan& op, const Operands& x,
                                                            const Row& row, const Walk& walk) {
  const int y = row.top + walk.tap_y * op.window.dilation_h;
  const int xx = row.left + walk.tap_x * op.window.dilation_w;
  if (walk.tap_y >= op.window.kernel_h ||
      static_cast<unsigned>(y) >= static_cast<unsigned>(op.in.height) ||
      static_cast<unsigned>(xx) >= static_cast<unsigned>(op.in.width))
    return nullptr;
  return x.in + row.image * x.in_stride +
         ((static_cast<int64_t>(walk.chunk) * op.in.height + y) * op.in.width + xx) * kChunkBytes;
}

struct Fragment {
  uint32_t b[2];
};

__device__ __forceinline__ Fragment fragment_at(const OpPlan& op, const Operands& x, int n_tile,
                                                int k_step, int lane) {
  const auto* fragments = reinterpret_cast<const uint2*>(x.weights);
  const uint2 words =
      __ldg(fragments + (static_cast<int64_t>(n_tile) * op.k_steps + k_step) * kWarpSize + lane);
  return {{words.x, words.y}};
}

// Adds biases and stores a warp's tile of MT x NT products.
template <class P, int MT, int NT>
__device__ __forceinline__ void finish_tiles(const OpPlan& op, const Operands& x, int m_tile,
                                             int n_tile, int n_count,
                                             const float (&sum)[MT][NT][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, pixels = out_pixels(op);
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = (m_tile + m) * 16 + half * 8 + lane / 4;
      if (row >= x.images * pixels) continue;
      const int image = row / pixels, pixel = row % pixels;
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const int channel = (n_tile + n) * 8 + lane % 4 * 2;
        if (n >= n_count || channel >= op.out.chunks * kChunk<P>) continue;
        float pair[2] = {sum[m][n][2 * half] + x.bias[channel],
                         sum[m][n][2 * half + 1] + x.bias[channel + 1]};
        finish<P>(op, x, image, pixel, channel, pair);
      }
    }
}

// One warp's MT x NT products, the input in shared memory. `zeros` are 16 bytes there.
template <class P, int MT, int NT>
__device__ __forceinline__ void conv_tiles(const OpPlan& op, const Operands& x,
                                           const unsigned char* zeros, int m_tile, int n_tile,
                                           int n_count) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  Row rows[MT];
#pragma unroll
  for (int m = 0; m < MT; ++m) rows[m] = row_at(op, x.images, (m_tile + m) * 16 + lane % 16);
  Walk walk{0, 0, 0};
  walk.advance(op, lane / 16);
  float sum[MT][NT][4] = {};
  Fragment now[NT];
#pragma unroll
  for (int n = 0; n < NT; ++n) now[n] = fragment_at(op, x, n_tile + (n < n_count ? n : 0), 0, lane);
  for (int k = 0; k < op.k_steps; ++k) {
    const int following = k + 1 < op.k_steps ? k + 1 : k;
    Fragment next[NT];  // weights come from far: one step ahead
#pragma unroll
    for (int n = 0; n < NT; ++n)
      next[n] = fragment_at(op, x, n_tile + (n < n_count ? n : 0), following, lane);
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      const unsigned char* chunk = input_chunk(op, x, rows[m], walk);
      uint32_t a[4];
      load_matrix(a, chunk == nullptr ? zeros : chunk);
#pragma unroll
      for (int n = 0; n < NT; ++n)
        if (n < n_count) P::mma(sum[m][n], a, now[n].b);
    }
    walk.advance(op, 2);
#pragma unroll
    for (int n = 0; n < NT; ++n) now[n] = next[n];
  }
  finish_tiles<P>(op, x, m_tile, n_tile, n_count, sum);
}

template <class P, int MT, int NT>
__device__ __forceinline__ void conv_by_tiles(const OpPlan& op, const Operands& x,
                                              const unsigned char* zeros, Worker warp) {
  const int m_tiles = (x.images * out_pixels(op) + 15) / 16;
  const int m_parts = (m_tiles + MT - 1) / MT, n_parts = (op.n_tiles + NT - 1) / NT;
  for (int part = warp.index; part < m_parts * n_parts; part += warp.count) {
    // groups of outputs of equal size: 6 tiles are 3 + 3, not 4 + 2
    const int group = part / m_parts;
    const int first = group * op.n_tiles / n_parts, end = (group + 1) * op.n_tiles / n_parts;
    conv_tiles<P, MT, NT>(op, x, zeros, part % m_parts * MT, first, end - first);
  }
}

template <class P>
__device__ void conv_on_tensor_cores(const OpPlan& op, const Operands& x,
                                     const unsigned char* zeros, Worker warp) {
  if (op.n_tiles <= 2)
    conv_by_tiles<P, 4, 2>(op, x, zeros, warp);
  else
    conv_by_tiles<P, 2, 4>(op, x, zeros, warp);
}

// ---- dense convolutions in float32: one thread sums 8 outputs of two pixels ----

constexpr int kDirectOutputs = 8, kDirectPixels = 2;

__device__ inline void conv_direct(const OpPlan& op, const Operands& x, Worker thread) {
  constexpr int kInputs = kChunk<Fp32>;
  const int rows = x.images * out_pixels(op);
  // lanes take neighbouring pixels, whose chunks lie side by side
  const int lane = thread.index % kWarpSize, warp = thread.index / kWarpSize;
  const int groups = (rows + kDirectPixels * kWarpSize - 1) / (kDirectPixels * kWarpSize);
  for (int part = warp; part < groups * op.n_tiles; part += thread.count / kWarpSize) {
    const int n_tile = part / groups;
    Row row[kDirectPixels];
#pragma unroll
    for (int p = 0; p < kDirectPixels; ++p)
      row[p] = row_at(op, x.images, (part % groups * kDirectPixels + p) * kWarpSize + lane);
    float sum[kDirectPixels][kDirectOutputs] = {};
    const auto* weights = reinterpret_cast<const float4*>(x.weights) +
                          static_cast<int64_t>(n_tile) * op.k_steps * kDirectOutputs;
    Walk walk{0, 0, 0};
    for (int k = 0; k < op.k_steps; ++k, walk.advance(op, 1)) {
      float in[kDirectPixels][kInputs];
#pragma unroll
      for (int p = 0; p < kDirectPixels; ++p) {
        const unsigned char* chunk = input_chunk(op, x, row[p], walk);
        const auto value =
            chunk == nullptr ? float4{0, 0, 0, 0} : *reinterpret_cast<const float4*>(chunk);
        in[p][0] = value.x, in[p][1] = value.y, in[p][2] = value.z, in[p][3] = value.w;
      }
#pragma unroll
      for (int n = 0; n < kDirectOutputs; ++n) {
        const float4 w = __ldg(weights + k * kDirectOutputs + n);
#pragma unroll
        for (int p = 0; p < kDirectPixels; ++p)
          sum[p][n] += in[p][0] * w.x + in[p][1] * w.y + in[p][2] * w.z + in[p][3] * w.w;
      }
    }
#pragma unroll
    for (int p = 0; p < kDirectPixels; ++p) {
      if (row[p].top == kNoRow) continue;
#pragma unroll
      for (int first = 0; first < kDirectOutputs; first += kInputs) {
        const int channel = n_tile * kDirectOutputs + first;
        if (channel >= op.out.chunks * kInputs) continue;
        float part_sum[kInputs];
#pragma unroll
        for (int i = 0; i < kInputs; ++i) part_sum[i] = sum[p][first + i] + x.bias[channel + i];
        finish<Fp32>(op, x, row[p].image, row[p].pixel, channel, part_sum);
      }
    }
  }
}

// ---- the rest: one thread makes one chunk of one pixel ----

struct Item {
  int image, chunk, pixel;
};

__device__ __forceinline__ Item item_at(const OpPlan& op, int64_t index) {
  const int pixels = out_pixels(op);
  const int64_t plane = index / pixels;
  return {static_cast<int>(plane / op.out.chunks), static_cast<int>(plane % op.out.chunks),
          static_cast<int>(index % pixels)};
}

__device__ __forceinline__ int64_t item_count(const OpPlan& op, const Operands& x) {
  return static_cast<int64_t>(x.images) * op.out.chunks * out_pixels(op);
}

template <class P>
__device__ __forceinline__ void load_chunk(const OpPlan& op, const Operands& x, int image,
                                           int chunk, int y, int xx, float (&v)[kChunk<P>]) {
  const Values<P, kChunk<P>> in = *values_at<P, kChunk<P>>(
      x.in + image * x.in_stride +
      ((static_cast<int64_t>(chunk) * op.in.height + y) * op.in.width + xx) * kChunkBytes);
  for (int i = 0; i < kChunk<P>; ++i) v[i] = P::value(in.at[i]);
}

// Taps of a window that lie inside the image, along one axis.
struct Span {
  int first, last;
};

__device__ __forceinline__ Span taps_inside(int start, int kernel, int dilation, int size) {
  int first = 0, last = kernel;
  while (first < kernel && start + first * dilation < 0) ++first;
  while (last > first && start + (last - 1) * dilation >= size) --last;
  return {first, last};
}

template <class P>
__device__ void depthwise(const OpPlan& op, const Operands& x, Worker thread) {
  constexpr int C = kChunk<P>;
  const Window& w = op.window;
  const auto* weights = reinterpret_cast<const float*>(x.weights);
  for (int64_t index = thread.index; index < item_count(op, x); index += thread.count) {
    const Item item = item_at(op, index);
    const int top = item.pixel / op.out.width * w.stride_h - w.pad_h;
    const int left = item.pixel % op.out.width * w.stride_w - w.pad_w;
    const Span rows = taps_inside(top, w.kernel_h, w.dilation_h, op.in.height);
    const Span columns = taps_inside(left, w.kernel_w, w.dilation_w, op.in.width);
    float sum[C];
    for (int i = 0; i < C; ++i) sum[i] = 0;
    for (int ky = rows.first; ky < rows.last; ++ky)
      for (int kx = columns.first; kx < columns.last; ++kx) {
        float in[C];
        load_chunk<P>(op, x, item.image, item.chunk, top + ky * w.dilation_h,
                      left + kx * w.dilation_w, in);
        const float* tap =
            weights + (static_cast<int64_t>(ky * w.kernel_w + kx) * op.out.chunks + item.chunk) * C;
        for (int i = 0; i < C; ++i) sum[i] += in[i] * __ldg(tap + i);
      }
    for (int i = 0; i < C; ++i)
      if (item.chunk * C + i < op.out.channels) sum[i] += x.bias[item.chunk * C + i];
    finish<P>(op, x, item.image, item.pixel, item.chunk * C, sum);
  }
}

template <class P, bool MAX>
__device__ void pool(const OpPlan& op, const Operands& x, Worker thread) {
  constexpr int C = kChunk<P>;
  const Window& w = op.window;
  for (int64_t index = thread.index; index < item_count(op, x); index += thread.count) {
    const Item item = item_at(op, index);
    const int top = item.pixel / op.out.width * w.stride_h - w.pad_h;
    const int left = item.pixel % op.out.width * w.stride_w - w.pad_w;
    const Span rows = taps_inside(top, w.kernel_h, 1, op.in.height);
    const Span columns = taps_inside(left, w.kernel_w, 1, op.in.width);
    float sum[C];
    for (int i = 0; i < C; ++i) sum[i] = MAX ? float_value(0xff800000) : 0;  // minus infinity
    for (int ky = rows.first; ky < rows.last; ++ky)
      for (int kx = columns.first; kx < columns.last; ++kx) {
        float in[C];
        load_chunk<P>(op, x, item.image, item.chunk, top + ky, left + kx, in);
        for (int i = 0; i < C; ++i) {
          if (MAX)
            sum[i] = in[i] > sum[i] || in[i] != in[i] ? in[i] : sum[i];  // NaN wins, as in torch
          else
            sum[i] += in[i];
        }
      }
    if (!MAX) {
      const int inside = (rows.last - rows.first) * (columns.last - columns.first);
      const auto area = static_cast<float>(op.count_padding ? w.kernel_h * w.kernel_w : inside);
      for (int i = 0; i < C; ++i) sum[i] /= area;
    }
    finish<P>(op, x, item.image, item.pixel, item.chunk * C, sum);
  }
}

// out = in * scale + shift
template <class P>
__device__ void affine(const OpPlan& op, const Operands& x, Worker thread) {
  constexpr int C = kChunk<P>;
  const auto* scale = reinterpret_cast<const float*>(x.weights);
  for (int64_t index = thread.index; index < item_count(op, x); index += thread.count) {
    const Item item = item_at(op, index);
    float sum[C];
    load_chunk<P>(op, x, item.image, item.chunk, item.pixel / op.out.width,
                  item.pixel % op.out.width, sum);
    for (int i = 0; i < C; ++i) {
      const int channel = item.chunk * C + i;
      if (channel < op.out.channels) sum[i] = sum[i] * scale[channel] + x.bias[channel];
    }
    finish<P>(op, x, item.image, item.pixel, item.chunk * C, sum);
  }
}

// out[c] = in[sources[c]] at every stride-th pixel, zero where there is none
template <class P>
__device__ void select(const OpPlan& op, const Operands& x, Worker thread) {
  constexpr int C = kChunk<P>;
  const int in_pixels = op.in.height * op.in.width;
  for (int64_t index = thread.index; index < item_count(op, x); index += thread.count) {
    const Item item = item_at(op, index);
    const int y = item.pixel / op.out.width * op.window.stride_h;
    const int xx = item.pixel % op.out.width * op.window.stride_w;
    const auto* in = reinterpret_cast<const typename P::Stored*>(x.in + item.image * x.in_stride);
    float sum[C];
    for (int i = 0; i < C; ++i) {
      const int source = x.sources[item.chunk * C + i];
      const int64_t place =
          (static_cast<int64_t>(source / C) * in_pixels + y * op.in.width + xx) * C + source % C;
      sum[i] = source < 0 ? 0.0f : P::value(in[place]);
    }
    finish<P>(op, x, item.image, item.pixel, item.chunk * C, sum);
  }
}

// Everything but dense convolutions.
template <class P>
__device__ void run_simple(const OpPlan& op, const Operands& x, Worker thread) {
  switch (op.kind) {
    case OpKind::depthwise:
      return depthwise<P>(op, x, thread);
    case OpKind::max_pool:
      return pool<P, true>(op, x, thread);
    case OpKind::avg_pool:
      return pool<P, false>(op, x, thread);
    case OpKind::affine:
      return affine<P>(op, x, thread);
    case OpKind::select:
      return select<P>(op, x, thread);
    case OpKind::conv:
      return;
  }
}

}  // namespace rlal::cuda
