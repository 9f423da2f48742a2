// Winograd convolution F(4x4, 3x3) (Lavin and Gray 2016), included by kernels.inl once per
// instruction set.
//
// A tile of 4 x 4 output pixels needs 6 x 6 input pixels; transformed, the convolution is 36 small
// matrix products over the channels: 36 multiplications where the direct way takes 144. With one
// image per lane both transforms are plain arithmetic between vectors. A block of T neighbouring
// tiles, of one row or of two, goes through transform, products and inverse transform while it is
// in cache.

// B' d: the six sums of six inputs.
struct Six {
  Vec v[6];
};

inline Six input_transform(Vec d0, Vec d1, Vec d2, Vec d3, Vec d4, Vec d5) {
  const Vec two = broadcast(2), four = broadcast(4), five = broadcast(5);
  const Vec even = d4 - four * d2, odd = d3 - four * d1;
  const Vec outer = d4 - d2, inner = d3 - d1;
  return {{four * d0 - five * d2 + d4, even + odd, even - odd, outer + two * inner,
           outer - two * inner, four * d1 - five * d3 + d5}};
}

struct Four {
  Vec v[4];
};

// A' m: the four pixels of six products.
inline Four output_transform(Vec m0, Vec m1, Vec m2, Vec m3, Vec m4, Vec m5) {
  const Vec two = broadcast(2), four = broadcast(4), eight = broadcast(8);
  const Vec p = m1 + m2, q = m1 - m2, r = m3 + m4, s = m3 - m4;
  return {{m0 + p + r, q + two * s, p + four * r, q + eight * s + m5}};
}

// Distance in vectors between the 36 planes of a scratch array: odd, so that they do not fall onto
// the same cache sets.
inline int64_t winograd_stride(int channels, int tiles) {
  return (static_cast<int64_t>(channels) * tiles) | 1;
}

// V[36][channel][T] of ROWS x ACROSS neighbouring tiles, the first at tile row y and tile column x.
template <int ROWS, int ACROSS>
void winograd_input(const ConvArgs& a, Vec* to, int64_t stride, int y, int x) {
  constexpr int T = ROWS * ACROSS;
  int64_t offsets[4 * ROWS + 2];  // of the input rows; those outside are the zero row
  for (int i = 0; i < 4 * ROWS + 2; ++i) {
    const int row = 4 * y - a.window.pad_h + i;
    offsets[i] = (row < 0 || row >= a.in.height ? a.in.stored : row) * a.in.row_stride;
  }
  const Vec* channel = vectors(a.in.data) + 4 * x - a.window.pad_w;
  Vec column[6][4 * ACROSS + 2];  // the vertical half, shared by neighbours in a row
  for (int c = 0; c < a.in.channels; ++c, channel += a.in.channel_stride)
    for (int r = 0; r < ROWS; ++r) {
      const int64_t* o = offsets + 4 * r;
      for (int i = 0; i < 4 * ACROSS + 2; ++i) {
        const Vec* d = channel + i;
        const Six six = input_transform(d[o[0]], d[o[1]], d[o[2]], d[o[3]], d[o[4]], d[o[5]]);
        RLAL_UNROLL
        for (int k = 0; k < 6; ++k) column[k][i] = six.v[k];
      }
      for (int k = 0; k < 6; ++k)
        for (int t = 0; t < ACROSS; ++t) {
          const Vec* d = &column[k][4 * t];
          const Six six = input_transform(d[0], d[1], d[2], d[3], d[4], d[5]);
          Vec* out = to + k * 6 * stride + c * T + r * ACROSS + t;
          RLAL_UNROLL
          for (int j = 0; j < 6; ++j) out[j * stride] = six.v[j];
        }
    }
}

// M[OC][T] = sum over channels of U[channel][OC] * V[channel][T], for one of the 36 positions.
template <int OC, int T>
void winograd_product(const float* weights, const Vec* in, int channels, Vec* out) {
  Vec acc[OC][T] = {};
  for (int c = 0; c < channels; ++c, weights += OC, in += T) {
    RLAL_UNROLL
    for (int o = 0; o < OC; ++o) {
      const Vec weight = broadcast(weights[o]);
      RLAL_UNROLL
      for (int t = 0; t < T; ++t) acc[o][t] += weight * in[t];
    }
  }
  RLAL_UNROLL
  for (int o = 0; o < OC; ++o) {
    RLAL_UNROLL
    for (int t = 0; t < T; ++t) out[o * T + t] = acc[o][t];
  }
}

template <int OC, int T>
inline void winograd_part(int size, const float* weights, const Vec* in, int channels, Vec* out) {
  if constexpr (OC > 0) {
    if (size == OC)
      winograd_product<OC, T>(weights, in, channels, out);
    else
      winograd_part<OC - 1, T>(size, weights, in, channels, out);
  }
}

// Bias, residual and activation of `width` pixels of a tile's row.
inline void winograd_store(const ConvArgs& a, const Four& four, Vec bias, int64_t offset,
                           int width) {
  const Vec low = broadcast(a.low), high = broadcast(a.high);
  Vec* out = vectors(a.out.data) + offset;
  const Vec* residual = a.residual ? vectors(a.residual) + offset : nullptr;
  if (width >= 4 && residual) {
    RLAL_UNROLL
    for (int j = 0; j < 4; ++j) out[j] = clamp(four.v[j] + bias + residual[j], low, high);
  } else if (width >= 4) {
    RLAL_UNROLL
    for (int j = 0; j < 4; ++j) out[j] = clamp(four.v[j] + bias, low, high);
  } else {
    for (int j = 0; j < width; ++j)
      out[j] = clamp(residual ? four.v[j] + bias + residual[j] : four.v[j] + bias, low, high);
  }
}

// Inverse transform of one tile of one channel. At the right and lower edge of an image a part of
// the tile lies outside and is not stored.
inline void winograd_output(const ConvArgs& a, const Vec* from, int64_t stride, int channel, int y,
                            int x) {
  Vec rows[4][6];
  RLAL_UNROLL
  for (int j = 0; j < 6; ++j) {
    const Vec* m = from + j * stride;
    const int64_t s = 6 * stride;
    const Four four = output_transform(m[0], m[s], m[2 * s], m[3 * s], m[4 * s], m[5 * s]);
    RLAL_UNROLL
    for (int i = 0; i < 4; ++i) rows[i][j] = four.v[i];
  }
  const Vec bias = broadcast(a.bias[channel]);
  const int64_t first = channel * a.out.channel_stride + 4 * y * a.out.row_stride + 4 * x;
  const int height = a.out.height - 4 * y, width = a.out.width - 4 * x;
  RLAL_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (i >= height) return;
    const Vec* r = rows[i];
    winograd_store(a, output_transform(r[0], r[1], r[2], r[3], r[4], r[5]), bias,
                   first + i * a.out.row_stride, width);
  }
}

template <int ROWS, int ACROSS>
void winograd_tiles(const ConvArgs& a, int y, int x) {
  constexpr int T = ROWS * ACROSS;
  const Split split(a.out.channels, RLAL_WINOGRAD_CHANNELS);
  const int64_t in_stride = winograd_stride(a.in.channels, T);
  const int64_t out_stride = winograd_stride(a.out.channels, T);
  Vec* transformed = vectors(a.scratch);
  Vec* products = transformed + 36 * in_stride;
  winograd_input<ROWS, ACROSS>(a, transformed, in_stride, y, x);
  const float* weights = a.weights;
  for (int position = 0; position < 36; ++position) {
    const Vec* in = transformed + position * in_stride;
    Vec* out = products + position * out_stride;
    for (int part = 0; part < split.parts; ++part) {
      const int size = split.size(part);
      winograd_part<RLAL_WINOGRAD_CHANNELS, T>(size, weights, in, a.in.channels, out);
      weights += static_cast<int64_t>(size) * a.in.channels;
      out += size * T;
    }
  }
  for (int o = 0; o < a.out.channels; ++o)
    for (int t = 0; t < T; ++t)
      winograd_output(a, products + o * T + t, out_stride, o, y + t / ACROSS, x + t % ACROSS);
}

// What is left of ROWS tile rows from tile column x on, in ever narrower blocks.
template <int ROWS, int ACROSS>
void winograd_rest(const ConvArgs& a, int across, int y, int x) {
  for (; x + ACROSS <= across; x += ACROSS) winograd_tiles<ROWS, ACROSS>(a, y, x);
  if constexpr (ACROSS > 1) winograd_rest<ROWS, ACROSS / 2>(a, across, y, x);
}

// Blocks of T tiles keep the registers full. Where a row of tiles ends in fewer, two rows give
// theirs together.
void winograd(const ConvArgs& a) {
  constexpr int T = RLAL_WINOGRAD_TILES;
  const int down = (a.out.height + 3) / 4, across = (a.out.width + 3) / 4;
  int y = 0;
  for (; y + 2 <= down; y += 2) {
    int x = 0;
    for (; x + T <= across; x += T) {
      winograd_tiles<1, T>(a, y, x);
      winograd_tiles<1, T>(a, y + 1, x);
    }
    winograd_rest<2, T / 2>(a, across, y, x);
  }
  if (y < down) winograd_rest<1, T>(a, across, y, 0);
}
