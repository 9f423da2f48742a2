// Depthwise convolution, included by kernels.inl once per instruction set.

// One output row of a channel, 3 x 3 taps.
struct DepthwiseRow {
  const Vec* in[3];  // the rows that the taps read, at the left of the first pixel
  Vec* out;
  const Vec* residual;  // or null
  Vec bias, low, high;
};

// PX neighbouring pixels: a row's inputs are read once for its three taps.
template <int PX, int STRIDE>
inline void depthwise_tile(const DepthwiseRow& row, const Vec* weights, int first, int last,
                           int x) {
  constexpr int kInputs = (PX - 1) * STRIDE + 3;
  Vec acc[PX];
  RLAL_UNROLL
  for (int p = 0; p < PX; ++p) acc[p] = row.bias;
  const auto add = [&](int ky) __attribute__((always_inline)) {
    const Vec* pixel = row.in[ky] + x * STRIDE;
    Vec in[kInputs];
    RLAL_UNROLL
    for (int i = 0; i < kInputs; ++i) in[i] = pixel[i];
    RLAL_UNROLL
    for (int kx = 0; kx < 3; ++kx) {
      RLAL_UNROLL
      for (int p = 0; p < PX; ++p) acc[p] += weights[ky * 3 + kx] * in[p * STRIDE + kx];
    }
  };
  if (first == 0 && last == 3) {  // straight on, but for the first and the last row of an image
    add(0);
    add(1);
    add(2);
  } else {
    for (int ky = first; ky < last; ++ky) add(ky);
  }
  RLAL_UNROLL
  for (int p = 0; p < PX; ++p) {
    if (row.residual) acc[p] += row.residual[x + p];
    row.out[x + p] = clamp(acc[p], row.low, row.high);
  }
}

template <int STRIDE>
inline void depthwise_row(const DepthwiseRow& row, const float* weights, int first, int last,
                          int left, int right) {
  constexpr int PX = RLAL_DEPTHWISE_PIXELS;
  Vec w[9];
  RLAL_UNROLL
  for (int i = 0; i < 9; ++i) w[i] = broadcast(weights[i]);
  int x = left;
  for (; x + PX <= right; x += PX) depthwise_tile<PX, STRIDE>(row, w, first, last, x);
  if (x + PX / 2 <= right) {
    depthwise_tile<PX / 2, STRIDE>(row, w, first, last, x);
    x += PX / 2;
  }
  for (; x < right; ++x) depthwise_tile<1, STRIDE>(row, w, first, last, x);
}

template <int STRIDE>
void depthwise_3x3(const ConvArgs& a, const Region& region) {
  for (int c = 0; c < a.out.channels; ++c) {
    const Vec* channel = vectors(a.in.data) + c * a.in.channel_stride - a.window.pad_w;
    for (int y = region.top; y < region.bottom; ++y) {
      const Rows rows = rows_inside(a.window, a.in, y);
      const int64_t out_row = c * a.out.channel_stride + row_offset(a.out, y);
      DepthwiseRow row{{},
                       vectors(a.out.data) + out_row,
                       a.residual ? vectors(a.residual) + out_row : nullptr,
                       broadcast(a.bias[c]),
                       broadcast(a.low),
                       broadcast(a.high)};
      for (int ky = 0; ky < 3; ++ky)
        row.in[ky] =
            channel + rows.start + ky * a.in.row_stride - (ky < rows.wrap ? 0 : rows.wrapped);
      depthwise_row<STRIDE>(row, a.weights + static_cast<int64_t>(c) * 9, rows.first, rows.last,
                            region.left, region.right);
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
