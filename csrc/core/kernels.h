// What a set of kernels for one instruction set offers. Plain pointers and sizes only.
//
// Activations are stored as [channel][row][pixel][lane]: one vector holds the same pixel of `lanes`
// different images. Every load is aligned, and no width, stride, padding or channel count wastes a
// lane. Zero pixels before and after each row, and one zero row per channel, stand for the padding,
// so convolutions have no edge cases.
#pragma once

#include <cstdint>

namespace rlal {

// A tensor of one block of images. `data` points at pixel (0, 0) of channel 0. Strides count pixels
// (vectors), not floats. `stored` rows are kept: row y lies at y % stored, so a tensor that is
// consumed while it is produced needs only its newest rows; the zero row follows the stored ones.
struct View {
  float* data;
  int64_t channel_stride, row_stride;
  int channels, height, width, stored;
};

// Rows [top, bottom) and columns [left, right) of an output.
struct Region {
  int top, bottom, left, right;
};

struct Window {
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// A matrix product over the channels, pixel by pixel.
constexpr bool is_pointwise(const Window& w) {
  return w.kernel_h == 1 && w.kernel_w == 1 && w.pad_h == 0 && w.pad_w == 0;
}

struct ConvArgs {
  View in, out;
  const float* residual;  // laid out like `out`, or null
  const float* weights;   // packed, see core/packing.h
  const float* bias;      // [out.channels]
  Window window;
  float low, high;  // the activation as a clamp
  float* scratch;   // of scratch_floats
};

// Floats of scratch that conv needs; winograd needs winograd_scratch (winograd.h).
constexpr int64_t conv_scratch(int in_channels, int lanes) {
  return (static_cast<int64_t>(in_channels) * 4 * lanes + (16 << 10));
}

struct PoolArgs {
  View in, out;
  Window window;
  bool count_padding;  // average: divide by the window's full size
};

// out[c] = clamp(in[c] * scale[c] + shift[c] + residual[c])
struct AffineArgs {
  View in, out;
  const float* scale;     // [channels]
  const float* shift;     // [channels]
  const float* residual;  // laid out like `out`, or null
  float low, high;
};

// out[c] = in[source[c]] at every stride-th pixel; zero where source[c] < 0
struct SelectArgs {
  View in, out;
  const int32_t* source;
  int stride_h, stride_w;
};

struct Kernels {
  const char* name;
  int lanes;              // images per vector
  int out_channels;       // most output channels in a register tile of conv
  int winograd_channels;  // the same for the products of winograd
  int pointwise_inputs;   // most input channels that a 1 x 1 convolution sums in one go
  // These compute a region of their output; the rows that it needs must be stored.
  void (*conv)(const ConvArgs&, const Region&);
  void (*depthwise)(const ConvArgs&, const Region&);  // weights [channel][kernel_h][kernel_w]
  void (*max_pool)(const PoolArgs&, const Region&);   // pools have no dilation
  void (*avg_pool)(const PoolArgs&, const Region&);
  // 3x3, stride 1; weights packed by transformed position; the region is whole tile rows
  void (*winograd)(const ConvArgs&, const Region&);
  // The rest compute all of it, from tensors that are stored whole.
  void (*affine)(const AffineArgs&);
  void (*select)(const SelectArgs&);
  // Adds up what the first `count` images of a block hold in one channel, less `pivot`, and the
  // squares of that.
  void (*moments)(const View& view, int channel, int count, float pivot, double* sum,
                  double* squares);
  // images [lanes][channels][height][width] with `image_stride` floats between images -> view;
  // images from `count` on are zero
  void (*load_images)(const float* images, int64_t image_stride, int count, const View& view);
  void (*store_images)(const View& view, float* images, int64_t image_stride, int count);
  // runs that many rounds of fused multiply-adds in registers; returns their floating point
  // operations, 0 where the instruction set has none
  int64_t (*fma_loop)(int64_t rounds);
};

// Register tiles: `channels` split evenly into the fewest parts of at most `most`, larger parts
// first. Always inlined, so that no copy compiled for one instruction set can serve code meant for
// another.
struct Split {
  int parts, small, larger;  // `larger` parts of size small + 1, then the rest of size small
  __attribute__((always_inline)) Split(int channels, int most)
      : parts((channels + most - 1) / most), small(channels / parts), larger(channels % parts) {}
  __attribute__((always_inline)) int size(int part) const {
    return small + (part < larger ? 1 : 0);
  }
};

}  // namespace rlal
