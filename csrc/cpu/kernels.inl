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
// registers: left alone it writes the finished sums to the stack and copies them from there.
#define RLAL_UNROLL _Pragma("GCC unroll 16")

constexpr int kLanes = RLAL_LANES;
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

struct Rows {  // the part of a window's rows that lies inside the image, for one output row
  int first, last;
};

inline Rows rows_inside(const Window& w, int in_height, int out_row) {
  const int top = out_row * w.stride_h - w.pad_h;
  int first = 0, last = w.kernel_h;
  while (first < last && top + first * w.dilation_h < 0) ++first;
  while (last > first && top + (last - 1) * w.dilation_h >= in_height) --last;
  return {first, last};
}

// One tile of OC output channels x PX neighbouring pixels, accumulated in registers over all taps.
// STRIDE 0 means: read it from the window.
template <int OC, int PX, int STRIDE>
void conv_tile(const ConvArgs& a, const float* weights, const float* bias, int64_t out_offset,
               Rows rows, int y, int x) {
  const Window& w = a.window;
  const int stride = STRIDE ? STRIDE : w.stride_w;
  Vec acc[OC][PX];
  RLAL_UNROLL
  for (int o = 0; o < OC; ++o) {
    RLAL_UNROLL
    for (int p = 0; p < PX; ++p) acc[o][p] = broadcast(bias[o]);
  }

  const int64_t start =
      (static_cast<int64_t>(y) * w.stride_h - w.pad_h) * a.in.row_stride + x * w.stride_w - w.pad_w;
  const Vec* channel = vectors(a.in.data) + start;
  for (int c = 0; c < a.in.channels; ++c, channel += a.in.channel_stride) {
    const float* tap =
        weights + (static_cast<int64_t>(c) * w.kernel_h + rows.first) * w.kernel_w * OC;
    for (int ky = rows.first; ky < rows.last; ++ky) {
      const Vec* pixel = channel + ky * w.dilation_h * a.in.row_stride;
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

  const Vec low = broadcast(a.low), high = broadcast(a.high);
  RLAL_UNROLL
  for (int o = 0; o < OC; ++o) {
    const int64_t offset = out_offset + o * a.out.channel_stride + y * a.out.row_stride + x;
    Vec* out = vectors(a.out.data) + offset;
    if (a.residual) {
      const Vec* residual = vectors(a.residual) + offset;
      RLAL_UNROLL
      for (int p = 0; p < PX; ++p) out[p] = clamp(acc[o][p] + residual[p], low, high);
    } else {
      RLAL_UNROLL
      for (int p = 0; p < PX; ++p) out[p] = clamp(acc[o][p], low, high);
    }
  }
}

// Few channels leave registers free: then a tile takes more pixels, so that enough sums are in
// flight.
template <int OC>
constexpr int tile_pixels() {
  return OC * 2 <= RLAL_TILE_CHANNELS ? RLAL_TILE_PIXELS * 2 : RLAL_TILE_PIXELS;
}

// The last pixels of a row, fewer than a full tile.
template <int OC, int PX, int STRIDE>
inline void conv_tail(const ConvArgs& a, const float* weights, const float* bias,
                      int64_t out_offset, Rows rows, int y, int x) {
  if constexpr (PX > 0) {
    if (a.out.width - x == PX)
      conv_tile<OC, PX, STRIDE>(a, weights, bias, out_offset, rows, y, x);
    else
      conv_tail<OC, PX - 1, STRIDE>(a, weights, bias, out_offset, rows, y, x);
  }
}

template <int OC, int STRIDE>
void conv_row(const ConvArgs& a, const float* weights, const float* bias, int64_t out_offset,
              Rows rows, int y) {
  constexpr int PX = tile_pixels<OC>();
  int x = 0;
  for (; x + PX <= a.out.width; x += PX)
    conv_tile<OC, PX, STRIDE>(a, weights, bias, out_offset, rows, y, x);
  conv_tail<OC, PX - 1, STRIDE>(a, weights, bias, out_offset, rows, y, x);
}

template <int OC, int STRIDE>
inline void conv_part(int size, const ConvArgs& a, const float* weights, const float* bias,
                      int64_t out_offset, Rows rows, int y) {
  if constexpr (OC > 0) {
    if (size == OC)
      conv_row<OC, STRIDE>(a, weights, bias, out_offset, rows, y);
    else
      conv_part<OC - 1, STRIDE>(size, a, weights, bias, out_offset, rows, y);
  }
}

template <int STRIDE>
void conv_rows(const ConvArgs& a) {
  const Split split(a.out.channels, RLAL_TILE_CHANNELS);
  const int64_t taps = static_cast<int64_t>(a.in.channels) * a.window.kernel_h * a.window.kernel_w;
  for (int y = 0; y < a.out.height; ++y) {
    const Rows rows = rows_inside(a.window, a.in.height, y);
    int channel = 0;
    for (int part = 0; part < split.parts; ++part) {
      const int size = split.size(part);
      conv_part<RLAL_TILE_CHANNELS, STRIDE>(size, a, a.weights + taps * channel, a.bias + channel,
                                            channel * a.out.channel_stride, rows, y);
      channel += size;
    }
  }
}

void conv(const ConvArgs& a) {
  switch (a.window.stride_w) {
    case 1:
      return conv_rows<1>(a);
    case 2:
      return conv_rows<2>(a);
    default:
      return conv_rows<0>(a);
  }
}

void depthwise(const ConvArgs& a) {
  const Window& w = a.window;
  ConvArgs one = a;  // a channel of a depthwise convolution is a convolution of 1 x 1 channels
  one.in.channels = one.out.channels = 1;
  for (int c = 0; c < a.out.channels; ++c) {
    one.weights = a.weights + static_cast<int64_t>(c) * w.kernel_h * w.kernel_w;
    one.bias = a.bias + c;
    conv(one);
    one.in.data += a.in.channel_stride * kLanes;
    one.out.data += a.out.channel_stride * kLanes;
    if (one.residual) one.residual += a.out.channel_stride * kLanes;
  }
}

#include "cpu/winograd.inl"

template <bool MAX>
void pool(const PoolArgs& a) {
  const Window& w = a.window;
  for (int c = 0; c < a.out.channels; ++c) {
    const Vec* in = vectors(a.in.data) + c * a.in.channel_stride;
    for (int y = 0; y < a.out.height; ++y) {
      const Rows rows = rows_inside(w, a.in.height, y);
      Vec* out = vectors(a.out.data) + c * a.out.channel_stride + y * a.out.row_stride;
      for (int x = 0; x < a.out.width; ++x) {
        int count = 0;
        Vec sum = broadcast(MAX ? -__builtin_huge_valf() : 0.0f);
        for (int ky = rows.first; ky < rows.last; ++ky)
          for (int kx = 0; kx < w.kernel_w; ++kx) {
            const int column = x * w.stride_w - w.pad_w + kx;
            if (column < 0 || column >= a.in.width) continue;
            const Vec value =
                in[(static_cast<int64_t>(y) * w.stride_h - w.pad_h + ky) * a.in.row_stride +
                   column];
            if (MAX)
              sum = (value > sum) | (value != value) ? value : sum;  // NaN wins, as in torch
            else
              sum += value;
            ++count;
          }
        if (!MAX)
          sum = sum /
                broadcast(static_cast<float>(a.count_padding ? w.kernel_h * w.kernel_w : count));
        out[x] = sum;
      }
    }
  }
}

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

}  // namespace

extern const Kernels table;
const Kernels table = {RLAL_ISA_NAME,
                       kLanes,
                       RLAL_TILE_CHANNELS,
                       RLAL_WINOGRAD_CHANNELS,
                       conv,
                       winograd,
                       depthwise,
                       pool<true>,
                       pool<false>,
                       affine,
                       select,
                       load_images,
                       store_images};

}  // namespace RLAL_ISA
}  // namespace rlal
