// Depthwise convolution, included by kernels.inl once per instruction set.

// PX neighbouring pixels of one channel, 3 x 3 taps: a row's inputs are read once for its three
// taps.
template <int PX, int STRIDE>
inline void depthwise_tile(const ConvArgs& a, const Vec* channel, const float* weights, Vec bias,
                           int64_t out_offset, const Rows& rows, int x) {
  constexpr int kInputs = (PX - 1) * STRIDE + 3;
  Vec acc[PX];
  RLAL_UNROLL
  for (int p = 0; p < PX; ++p) acc[p] = bias;
  const Vec* first = channel + rows.start + x * STRIDE - a.window.pad_w;
  for (int ky = rows.first; ky < rows.last; ++ky) {
    const Vec* pixel = first + ky * a.in.row_stride - (ky < rows.wrap ? 0 : rows.wrapped);
    Vec in[kInputs];
    RLAL_UNROLL
    for (int i = 0; i < kInputs; ++i) in[i] = pixel[i];
    RLAL_UNROLL
    for (int kx = 0; kx < 3; ++kx) {
      const Vec weight = broadcast(weights[ky * 3 + kx]);
      RLAL_UNROLL
      for (int p = 0; p < PX; ++p) acc[p] += weight * in[p * STRIDE + kx];
    }
  }
  const Vec low = broadcast(a.low), high = broadcast(a.high);
  Vec* out = vectors(a.out.data) + out_offset;
  RLAL_UNROLL
  for (int p = 0; p < PX; ++p) {
    if (a.residual) acc[p] += vectors(a.residual)[out_offset + p];
    out[p] = clamp(acc[p], low, high);
  }
}

template <int STRIDE>
void depthwise_3x3(const ConvArgs& a, const Region& region) {
  constexpr int PX = RLAL_DEPTHWISE_PIXELS;
  for (int c = 0; c < a.out.channels; ++c) {
    const Vec* channel = vectors(a.in.data) + c * a.in.channel_stride;
    const float* weights = a.weights + static_cast<int64_t>(c) * 9;
    const Vec bias = broadcast(a.bias[c]);
    for (int y = region.top; y < region.bottom; ++y) {
      const Rows rows = rows_inside(a.window, a.in, y);
      const int64_t row = c * a.out.channel_stride + row_offset(a.out, y);
      int x = region.left;
      for (; x + PX <= region.right; x += PX)
        depthwise_tile<PX, STRIDE>(a, channel, weights, bias, row + x, rows, x);
      if (x + PX / 2 <= region.right) {
        depthwise_tile<PX / 2, STRIDE>(a, channel, weights, bias, row + x, rows, x);
        x += PX / 2;
      }
      for (; x < region.right; ++x)
        depthwise_tile<1, STRIDE>(a, channel, weights, bias, row + x, rows, x);
    }
  }
}

void depthwise(const ConvArgs& a, const Region& region) {
  const Window& w = a.window;
  const bool usual = w.kernel_h == 3 && w.kernel_w == 3 && w.dilation_h == 1 && w.dilation_w == 1;
  if (usual && w.stride_w == 1) return depthwise_3x3<1>(a, region);
  if (usual && w.stride_w == 2) return depthwise_3x3<2>(a, region);
  ConvArgs one = a;  // a channel of a depthwise convolution is a convolution of 1 x 1 channels
  one.in.channels = one.out.channels = 1;
  for (int c = 0; c < a.out.channels; ++c) {
    one.weights = a.weights + static_cast<int64_t>(c) * w.kernel_h * w.kernel_w;
    one.bias = a.bias + c;
    conv(one, region);
    one.in.data += a.in.channel_stride * kLanes;
    one.out.data += a.out.channel_stride * kLanes;
    if (one.residual) one.residual += a.out.channel_stride * kLanes;
  }
}
