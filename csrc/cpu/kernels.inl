// The CPU kernels, compiled once per instruction set. The including file sets RLAL_ISA (a
// namespace), RLAL_ISA_NAME, RLAL_LANES, and the register tile RLAL_TILE_CHANNELS x
// RLAL_TILE_PIXELS.
//
// Nothing from the standard library may be instantiated here: a template compiled with AVX-512
// flags could be the copy that the linker keeps for every caller.

#include "core/kernels.h"

namespace rlal {
namespace RLAL_ISA {
namespace {

// Loops over a register tile. Only when they are unrolled early does GCC keep the tile in
// registers: left alone it writes the finished sums to the stack and copies them from there. The
// longest is the 17 inputs of 8 strided depthwise pixels; a loop that is longer is not unrolled.
#define RLAL_UNROLL _Pragma("GCC unroll 17")

constexpr int kLanes = RLAL_LANES;
constexpr int64_t kInputsAtOnce = 32 << 10;  // bytes: what conv keeps in a first-level cache
typedef float Vec __attribute__((vector_size(RLAL_LANES * sizeof(float)), may_alias));

inline Vec broadcast(float value) {
  return value - Vec{};
}  // value - 0 is exact, and GCC makes one broadcast of it

// The comparisons are false for NaN, so NaN passes through as in torch.
inline Vec clamp(Vec x, Vec low, Vec high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

inline Vec* vectors(float* p) { return reinterpret_cast<Vec*>(p); }
inline const Vec* vectors(const float* p) { return reinterpret_cast<const Vec*>(p); }

// The rows of a window that lie inside the image, for one output row: kernel rows [first, last),
// of which those from `wrap` on have passed the end of the stored rows.
struct Rows {
  int first, wrap, last;
  int64_t start;    // offset of kernel row 0 from pixel (0, 0)
  int64_t wrapped;  // what to subtract from `wrap` on
};

inline Rows rows_inside(const Window& w, const View& in, int out_row) {
  const int top = out_row * w.stride_h - w.pad_h;
  Rows rows{0, 0, w.kernel_h, 0, in.stored * in.row_stride};
  while (rows.first < rows.last && top + rows.first * w.dilation_h < 0) ++rows.first;
  while (rows.last > rows.first && top + (rows.last - 1) * w.dilation_h >= in.height) --rows.last;
  const int behind = (top + rows.first * w.dilation_h) / in.stored * in.stored;
  rows.start = (top - behind) * in.row_stride;
  rows.wrap = rows.first;
  while (rows.wrap < rows.last && top + rows.wrap * w.dilation_h - behind < in.stored) ++rows.wrap;
  return rows;
}

inline int64_t row_offset(const View& v, int row) { return row % v.stored * v.row_stride; }

// One tile of OC output channels x PX neighbouring pixels, accumulated in registers over all taps.
// STRIDE 0 means: read it from the window. `out_offset` is the first pixel's in the output.
template <int OC, int PX, int STRIDE>
void conv_tile(const ConvArgs& a, const float* weights, const float* bias, int64_t out_offset,
               const Rows& rows, int x) {
  const Window& w = a.window;
  const int stride = STRIDE ? STRIDE : w.stride_w;
  Vec acc[OC][PX];
  RLAL_UNROLL
  for (int o = 0; o < OC; ++o) {
    RLAL_UNROLL
    for (int p = 0; p < PX; ++p) acc[o][p] = broadcast(bias[o]);
  }

  const Vec* channel = vectors(a.in.data) + rows.start + x * w.stride_w - w.pad_w;
  for (int c = 0; c < a.in.channels; ++c, channel += a.in.channel_stride) {
    const float* tap =
        weights + (static_cast<int64_t>(c) * w.kernel_h + rows.first) * w.kernel_w * OC;
    for (int ky = rows.first; ky < rows.last; ++ky) {
      const Vec* pixel =
          channel + ky * w.dilation_h * a.in.row_stride - (ky < rows.wrap ? 0 : rows.wrapped);
      for (int kx = 0; kx < w.kernel_w; ++kx, pixel += w.dilation_w, tap += OC) {
        Vec in[PX];
        RLAL_UNROLL
        for (int p = 0; p < PX; ++p) in[p] = pixel[p * stride];
        RLAL_UNROLL
        for (int o = 0; o < OC; ++o) {
          const Vec weight = broadcast(tap[o]);
          RLAL_UNROLL
          for (int p = 0; p < PX; ++p) acc[o][p] += weight * in[p];
        }
      }
    }
  }

  // copied before a store could change them, as far as the compiler knows
  const int64_t out_stride = a.out.channel_stride;
  const Vec low = broadcast(a.low), high = broadcast(a.high);
  Vec* out = vectors(a.out.data) + out_offset;
  if (a.residual) {
    const Vec* residual = vectors(a.residual) + out_offset;
    RLAL_UNROLL
    for (int o = 0; o < OC; ++o) {
      RLAL_UNROLL
      for (int p = 0; p < PX; ++p) acc[o][p] += residual[o * out_stride + p];
    }
  }
  RLAL_UNROLL
  for (int o = 0; o < OC; ++o) {
    RLAL_UNROLL
    for (int p = 0; p < PX; ++p) out[o * out_stride + p] = clamp(acc[o][p], low, high);
  }
}

// Few channels leave registers free: then a tile takes more pixels, so that enough sums are in
// flight.
template <int OC>
constexpr int tile_pixels() {
  return OC * 2 <= RLAL_TILE_CHANNELS ? RLAL_TILE_PIXELS * 2 : RLAL_TILE_PIXELS;
}

// The last pixels of a stretch, fewer than a full tile.
template <int OC, int PX, int STRIDE>
inline void conv_tail(const ConvArgs& a, const float* weights, const float* bias,
                      int64_t out_offset, const Rows& rows, int x, int right) {
  if constexpr (PX > 0) {
    if (right - x == PX)
      conv_tile<OC, PX, STRIDE>(a, weights, bias, out_offset, rows, x);
    else
      conv_tail<OC, PX - 1, STRIDE>(a, weights, bias, out_offset, rows, x, right);
  }
}

template <int OC, int STRIDE>
void conv_stretch(const ConvArgs& a, const float* weights, const float* bias, int64_t out_row,
                  const Rows& rows, int x, int right) {
  constexpr int PX = tile_pixels<OC>();
  for (; x + PX <= right; x += PX)
    conv_tile<OC, PX, STRIDE>(a, weights, bias, out_row + x, rows, x);
  conv_tail<OC, PX - 1, STRIDE>(a, weights, bias, out_row + x, rows, x, right);
}

template <int OC, int STRIDE>
inline void conv_part(int size, const ConvArgs& a, const float* weights, const float* bias,
                      int64_t out_row, const Rows& rows, int left, int right) {
  if constexpr (OC > 0) {
    if (size == OC)
      conv_stretch<OC, STRIDE>(a, weights, bias, out_row, rows, left, right);
    else
      conv_part<OC - 1, STRIDE>(size, a, weights, bias, out_row, rows, left, right);
  }
}

// Output pixels whose inputs stay in the first-level cache while all output channels are computed;
// a whole row where not even a few do.
inline int stretch_pixels(const ConvArgs& a) {
  const int64_t pixel =
      static_cast<int64_t>(a.in.channels) * a.window.kernel_h * a.window.stride_w * sizeof(Vec);
  constexpr int step = 2 * RLAL_TILE_PIXELS;
  const int64_t fit = kInputsAtOnce / pixel / step * step;
  return fit > 0 && fit < a.out.width ? static_cast<int>(fit) : a.out.width;
}

template <int STRIDE>
void conv_region(const ConvArgs& a, const Region& region) {
  const Split split(a.out.channels, RLAL_TILE_CHANNELS);
  const int64_t taps = static_cast<int64_t>(a.in.channels) * a.window.kernel_h * a.window.kernel_w;
  const int stretch = stretch_pixels(a);
  for (int y = region.top; y < region.bottom; ++y) {
    const Rows rows = rows_inside(a.window, a.in, y);
    for (int left = region.left; left < region.right; left += stretch) {
      const int right = left + stretch < region.right ? left + stretch : region.right;
      int channel = 0;
      for (int part = 0; part < split.parts; ++part) {
        const int size = split.size(part);
        conv_part<RLAL_TILE_CHANNELS, STRIDE>(size, a, a.weights + taps * channel, a.bias + channel,
                                              channel * a.out.channel_stride + row_offset(a.out, y),
                                              rows, left, right);
        channel += size;
      }
    }
  }
}

#include "cpu/pointwise.inl"

void conv(const ConvArgs& a, const Region& region) {
  if (is_pointwise(a.window)) return pointwise(a, region);
  switch (a.window.stride_w) {
    case 1:
      return conv_region<1>(a, region);
    case 2:
      return conv_region<2>(a, region);
    default:
      return conv_region<0>(a, region);
  }
}

#include "cpu/depthwise.inl"
#include "cpu/winograd.inl"

#include "cpu/pool.inl"

void affine(const AffineArgs& a) {
  const Vec low = broadcast(a.low), high = broadcast(a.high);
  for (int c = 0; c < a.out.channels; ++c) {
    const Vec scale = broadcast(a.scale[c]), shift = broadcast(a.shift[c]);
    for (int y = 0; y < a.out.height; ++y) {
      const Vec* in = vectors(a.in.data) + c * a.in.channel_stride + y * a.in.row_stride;
      const int64_t offset = c * a.out.channel_stride + y * a.out.row_stride;
      Vec* out = vectors(a.out.data) + offset;
      for (int x = 0; x < a.out.width; ++x) {
        Vec value = in[x] * scale + shift;
        if (a.residual) value += vectors(a.residual)[offset + x];
        out[x] = clamp(value, low, high);
      }
    }
  }
}

void select(const SelectArgs& a) {
  for (int c = 0; c < a.out.channels; ++c) {
    const int32_t source = a.source[c];
    for (int y = 0; y < a.out.height; ++y) {
      const Vec* in = vectors(a.in.data) + source * a.in.channel_stride +
                      static_cast<int64_t>(y) * a.stride_h * a.in.row_stride;
      Vec* out = vectors(a.out.data) + c * a.out.channel_stride + y * a.out.row_stride;
      for (int x = 0; x < a.out.width; ++x) out[x] = source < 0 ? Vec{} : in[x * a.stride_w];
    }
  }
}

// Single precision within a row, double precision across rows.
void moments(const View& v, int channel, int count, float pivot, double* sum, double* squares) {
  const Vec origin = broadcast(pivot);
  for (int y = 0; y < v.height; ++y) {
    const Vec* row = vectors(v.data) + channel * v.channel_stride + row_offset(v, y);
    Vec sums = {}, squared = {};
    for (int x = 0; x < v.width; ++x) {
      const Vec value = row[x] - origin;
      sums += value;
      squared += value * value;
    }
    for (int lane = 0; lane < count; ++lane) {
      *sum += sums[lane];
      *squares += squared[lane];
    }
  }
}

void load_images(const float* images, int64_t image_stride, int count, const View& v) {
  for (int c = 0; c < v.channels; ++c)
    for (int y = 0; y < v.height; ++y) {
      float* out = v.data + (c * v.channel_stride + y * v.row_stride) * kLanes;
      const float* in = images + (static_cast<int64_t>(c) * v.height + y) * v.width;
      for (int x = 0; x < v.width; ++x)
        for (int lane = 0; lane < kLanes; ++lane)
          out[x * kLanes + lane] = lane < count ? in[lane * image_stride + x] : 0.0f;
    }
}

void store_images(const View& v, float* images, int64_t image_stride, int count) {
  for (int c = 0; c < v.channels; ++c)
    for (int y = 0; y < v.height; ++y) {
      const float* in = v.data + (c * v.channel_stride + y * v.row_stride) * kLanes;
      float* out = images + (static_cast<int64_t>(c) * v.height + y) * v.width;
      for (int lane = 0; lane < count; ++lane)
        for (int x = 0; x < v.width; ++x) out[lane * image_stride + x] = in[x * kLanes + lane];
    }
}

#include "cpu/peak.inl"

}  // namespace

extern const Kernels table;
const Kernels table = {RLAL_ISA_NAME,
                       kLanes,
                       RLAL_TILE_CHANNELS,
                       RLAL_WINOGRAD_CHANNELS,
                       kPointwiseInputs,
                       conv,
                       depthwise,
                       pool<true>,
                       pool<false>,
                       winograd,
                       affine,
                       select,
                       moments,
                       load_images,
                       store_images,
                       fma_loop};

}  // namespace RLAL_ISA
}  // namespace rlal
