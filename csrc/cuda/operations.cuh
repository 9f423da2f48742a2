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
  return smaller(larger(x, op.low), op.high);  // NaN stays, as in torch
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

__device__ __forceinline__ int divided(int n, const Divisor& by) {
  return static_cast<int>(static_cast<uint64_t>(static_cast<uint32_t>(n)) * by.multiplier >>
                          by.shift);
}

__device__ __forceinline__ Row row_at(const OpPlan& op, int images, int index) {
  const int pixels = out_pixels(op);
  if (index >= images * pixels) return {0, 0, kNoRow, kNoRow};
  const int image = divided(index, op.by_pixels), pixel = index - image * pixels;
  const int y = divided(pixel, op.by_width), x = pixel - y * op.out.width;
  return {image, pixel, y * op.window.stride_h - op.window.pad_h,
          x * op.window.stride_w - op.window.pad_w};
}

// What the innermost loop needs of an operation, in registers: the operation itself lies in memory
// and would be read again in each round.
struct Taps {
  int height, width, chunks, kernel_h, kernel_w, dilation_h, dilation_w;

  __device__ __forceinline__ explicit Taps(const OpPlan& op)
      : height(op.in.height),
        width(op.in.width),
        chunks(op.in.chunks),
        kernel_h(op.window.kernel_h),
        kernel_w(op.window.kernel_w),
        dilation_h(op.window.dilation_h),
        dilation_w(op.window.dilation_w) {}
};

// Walks the chunks of the sum: taps one by one, within a tap the input's chunks. Without branches,
// as the lanes of a warp stand at different places.
struct Walk {
  int tap_y, tap_x, chunk;

  // `by` 1 or 2
  __device__ __forceinline__ void advance(const Taps& taps, int by) {
    const bool narrow = taps.chunks == 1;
    chunk += narrow ? 0 : by;
    const bool wrap = chunk >= taps.chunks;
    chunk -= wrap ? taps.chunks : 0;
    tap_x += narrow ? by : static_cast<int>(wrap);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool down = tap_x >= taps.kernel_w;
      tap_x -= down ? taps.kernel_w : 0;
      tap_y += static_cast<int>(down);
    }
  }
};

// Where in the input the walk stands, relative to a row's window.
template <typename Offset>
struct Step {
  int y, x;
  Offset offset;  // bytes from the window's first pixel, in the first chunk

  __device__ __forceinline__ Step(const Taps& taps, const Walk& walk)
      : y(walk.tap_y < taps.kernel_h ? walk.tap_y * taps.dilation_h : -kNoRow),
        x(walk.tap_x * taps.dilation_w),
        offset(((static_cast<Offset>(walk.chunk) * taps.height + y) * taps.width + x) *
               kChunkBytes) {}

  // Whether there is a pixel: inside the image, and not after the last tap.
  __device__ __forceinline__ bool inside(const Taps& taps, int top, int left) const {
    return static_cast<unsigned>(top + y) < static_cast<unsigned>(taps.height) &&
           static_cast<unsigned>(left + x) < static_cast<unsigned>(taps.width);
  }
};

// The first pixel of a row's window in the first chunk; it may lie outside the image.
__device__ __forceinline__ int64_t window_offset(const OpPlan& op, const Operands& x,
                                                 const Row& row) {
  return row.image * x.in_stride +
         (static_cast<int64_t>(row.top) * op.in.width + row.left) * kChunkBytes;
}

struct Fragment {
  uint32_t b[2];
};

// Adds biases and stores a warp's tile of MT x NT products.
template <class P, int MT, int NT>
__device__ __forceinline__ void finish_tiles(const OpPlan& op, const Operands& x, int m_tile,
                                             int n_tile, int n_count,
                                             const float (&sum)[MT][NT][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, pixels = out_pixels(op);
  float2 bias[NT];
#pragma unroll
  for (int n = 0; n < NT; ++n)
    if (n < n_count)
      bias[n] = *reinterpret_cast<const float2*>(x.bias + (n_tile + n) * 8 + lane % 4 * 2);
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = (m_tile + m) * 16 + half * 8 + lane / 4;
      if (row >= x.images * pixels) continue;
      const int image = divided(row, op.by_pixels), pixel = row - image * pixels;
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const int channel = (n_tile + n) * 8 + lane % 4 * 2;
        if (n >= n_count || channel >= op.out.chunks * kChunk<P>) continue;
        float pair[2] = {sum[m][n][2 * half] + bias[n].x, sum[m][n][2 * half + 1] + bias[n].y};
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
  const SharedPlace nothing = shared_place(zeros);
  SharedPlace window[MT];
  int top[MT], left[MT];
#pragma unroll
  for (int m = 0; m < MT; ++m) {
    const Row row = row_at(op, x.images, (m_tile + m) * 16 + lane % 16);
    window[m] = shared_place(x.in) + static_cast<int>(window_offset(op, x, row));
    top[m] = row.top;
    left[m] = row.left;
  }
  const Taps taps(op);
  Walk walk{0, 0, 0};
  if (lane >= 16) walk.advance(taps, 1);
  float sum[MT][NT][4] = {};
  const int k_steps = op.k_steps, k_stride = op.n_tiles * kWarpSize;
  const uint2* weights = reinterpret_cast<const uint2*>(x.weights) + n_tile * kWarpSize + lane;
  // Loaded without a condition, what is not there as another one: only so does the compiler begin
  // the loads at once.
  uint2 now[NT];
#pragma unroll
  for (int n = 0; n < NT; ++n) now[n] = __ldg(weights + (n < n_count ? n : 0) * kWarpSize);
  for (int k = 0; k < k_steps; ++k) {
    uint2 next[NT];  // weights come from far: one step ahead
    weights += k + 1 < k_steps ? k_stride : 0;
#pragma unroll
    for (int n = 0; n < NT; ++n) next[n] = __ldg(weights + (n < n_count ? n : 0) * kWarpSize);
    const Step<int> step(taps, walk);
    uint32_t a[MT][4];
#pragma unroll
    for (int m = 0; m < MT; ++m)
      load_matrix(a[m], step.inside(taps, top[m], left[m]) ? window[m] + step.offset : nothing);
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const uint32_t b[2] = {now[n].x, now[n].y};
        if (n < n_count) P::mma(sum[m][n], a[m], b);
      }
    walk.advance(taps, 2);
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
    const unsigned char* window[kDirectPixels];
#pragma unroll
    for (int p = 0; p < kDirectPixels; ++p) {
      row[p] = row_at(op, x.images, (part % groups * kDirectPixels + p) * kWarpSize + lane);
      window[p] = x.in + window_offset(op, x, row[p]);
    }
    float sum[kDirectPixels][kDirectOutputs] = {};
    const auto* weights = reinterpret_cast<const float4*>(x.weights) +
                          static_cast<int64_t>(n_tile) * op.k_steps * kDirectOutputs;
    const Taps taps(op);
    Walk walk{0, 0, 0};
    const int k_steps = op.k_steps;
    for (int k = 0; k < k_steps; ++k, walk.advance(taps, 1)) {
      const Step<int64_t> step(taps, walk);
      float in[kDirectPixels][kInputs];
#pragma unroll
      for (int p = 0; p < kDirectPixels; ++p) {
        float4 value{0, 0, 0, 0};
        if (step.inside(taps, row[p].top, row[p].left))
          value = *reinterpret_cast<const float4*>(window[p] + step.offset);
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
