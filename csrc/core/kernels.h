// What a set of kernels for one instruction set offers. Plain pointers and sizes only.
//
// Activations are stored as [channel][row][pixel][lane]: one vector holds the same pixel of `lanes`
// different images. Every load is aligned, no width, stride, padding or channel count wastes a
// lane, and rows carry a zero border as wide as their readers' padding, so convolutions have no
// edge cases.
#pragma once

#include <cstdint>

namespace rlal {

// A tensor of one block of images. `data` points at pixel (0, 0) of channel 0; the border lies
// before it. Strides count pixels (vectors), not floats.
struct View {
  float* data;
  int64_t channel_stride, row_stride;
  int channels, height, width;
};

struct Window {
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

struct ConvArgs {
  View in, out;
  const float* residual;  // laid out like `out`, or null
  const float* weights;   // packed, see pack_conv
  const float* bias;      // [out.channels]
  Window window;
  float low, high;  // the activation as a clamp
  float* scratch;   // winograd only, see winograd_scratch in winograd.h
};

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
  void (*conv)(const ConvArgs&);
  // 3x3, stride 1, padding 1, height and width multiples of 4; weights packed by transformed
  // position
  void (*winograd)(const ConvArgs&);
  void (*depthwise)(const ConvArgs&);  // weights [channel][kernel_h][kernel_w]
  void (*max_pool)(const PoolArgs&);
  void (*avg_pool)(const PoolArgs&);
  void (*affine)(const AffineArgs&);
  void (*select)(const SelectArgs&);
  // images [lanes][channels][height][width] with `image_stride` floats between images -> view;
  // images from `count` on are zero
  void (*load_images)(const float* images, int64_t image_stride, int count, const View& view);
  void (*store_images)(const View& view, float* images, int64_t image_stride, int count);
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
