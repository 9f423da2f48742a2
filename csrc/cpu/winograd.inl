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

// Two of the six, those that share their terms: 1 and 2, 3 and 4, 0 and 5.
struct Pair {
  Vec first, second;
};

template <int PAIR>
constexpr int kInputFirst = PAIR == 0   ? 1
                            : PAIR == 1 ? 3
                                        : 0;
template <int PAIR>
constexpr int kInputSecond = PAIR == 0   ? 2
                             : PAIR == 1 ? 4
                                         : 5;

// d: the six inputs' rows, at one pixel.
template <int PAIR>
inline Pair input_pair(const Vec* const (&d)[6], int pixel) {
  const Vec two = broadcast(2), four = broadcast(4), five = broadcast(5);
  const Vec d1 = d[1][pixel], d2 = d[2][pixel], d3 = d[3][pixel], d4 = d[4][pixel];
  if (PAIR == 0) {
    const Vec even = d4 - four * d2, odd = d3 - four * d1;
    return {even + odd, even - odd};
  }
  if (PAIR == 1) {
    const Vec outer = d4 - d2, inner = d3 - d1;
    return {outer + two * inner, outer - two * inner};
  }
  return {four * d[0][pixel] - five * d2 + d4, four * d1 - five * d3 + d[5][pixel]};
}

// A' m: the four pixels of six products.
struct Four {
  Vec v[4];
};

inline Four output_transform(const Vec (&m)[6]) {
  const Vec two = broadcast(2), four = broadcast(4), eight = broadcast(8);
  const Vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
  return {{m[0] + p + r, q + two * s, p + four * r, q + eight * s + m[5]}};
}

// Pixels 0 and 2, or 1 and 3, of six products, one below the other, of T tiles.
template <int PAIR, int T>
inline Pair output_pair(const Vec* m) {
  constexpr int kRow = 6 * T;
  const Vec m1 = m[kRow], m2 = m[2 * kRow], m3 = m[3 * kRow], m4 = m[4 * kRow];
  if (PAIR == 0) {
    const Vec p = m1 + m2, r = m3 + m4;
    return {m[0] + p + r, p + broadcast(4) * r};
  }
  const Vec q = m1 - m2, s = m3 - m4;
  return {q + broadcast(2) * s, q + broadcast(8) * s + m[5 * kRow]};
}

// What is transformed is stored as [channel][36 positions][T tiles]; the distance between channels
// is odd, so that they do not fall onto the same cache sets.
template <int T>
constexpr int64_t kWinogradStride = 36 * T + 1;

// Two rows of V of ACROSS neighbouring tiles of one channel. A pair at a time, because all six rows
// of a tile do not fit into the registers; neighbours share two columns.
template <int PAIR, int ACROSS, int T>
inline void winograd_input_rows(const Vec* const (&d)[6], Vec* to) {
  Vec first[6], second[6];
  RLAL_UNROLL
  for (int t = 0; t < ACROSS; ++t) {
    if (t > 0) {
      first[0] = first[4], first[1] = first[5];
      second[0] = second[4], second[1] = second[5];
    }
    RLAL_UNROLL
    for (int i = t > 0 ? 2 : 0; i < 6; ++i) {
      const Pair pair = input_pair<PAIR>(d, 4 * t + i);
      first[i] = pair.first;
      second[i] = pair.second;
    }
    const Six upper = input_transform(first[0], first[1], first[2], first[3], first[4], first[5]);
    RLAL_UNROLL
    for (int j = 0; j < 6; ++j) to[(kInputFirst<PAIR> * 6 + j) * T + t] = upper.v[j];
    const Six lower =
        input_transform(second[0], second[1], second[2], second[3], second[4], second[5]);
    RLAL_UNROLL
    for (int j = 0; j < 6; ++j) to[(kInputSecond<PAIR> * 6 + j) * T + t] = lower.v[j];
  }
}

// V of ROWS x ACROSS neighbouring tiles, the first at tile row y and tile column x.
template <int ROWS, int ACROSS>
void winograd_input(const ConvArgs& a, Vec* to, int y, int x) {
  constexpr int T = ROWS * ACROSS;
  int64_t offsets[4 * ROWS + 2];  // of the input rows; those outside are the zero row
  for (int i = 0; i < 4 * ROWS + 2; ++i) {
    const int row = 4 * y - a.window.pad_h + i;
    offsets[i] =
        row < 0 || row >= a.in.height ? a.in.stored * a.in.row_stride : row_offset(a.in, row);
  }
  const int64_t channel_stride = a.in.channel_stride;
  const int channels = a.in.channels;
  const Vec* channel = vectors(a.in.data) + 4 * x - a.window.pad_w;
  for (int c = 0; c < channels; ++c, channel += channel_stride)
    for (int r = 0; r < ROWS; ++r) {
      const int64_t* o = offsets + 4 * r;
      const Vec* const d[6] = {channel + o[0], channel + o[1], channel + o[2],
                               channel + o[3], channel + o[4], channel + o[5]};
      Vec* out = to + c * kWinogradStride<T> + r * ACROSS;
      winograd_input_rows<0, ACROSS, T>(d, out);
      winograd_input_rows<1, ACROSS, T>(d, out);
      winograd_input_rows<2, ACROSS, T>(d, out);
    }
}

// M = sum over channels of U[channel][OC] * V[channel], for one of the 36 positions.
template <int OC, int T>
void winograd_product(const float* weights, const Vec* in, int channels, Vec* out) {
  Vec acc[OC][T] = {};
  for (int c = 0; c < channels; ++c, weights += OC, in += kWinogradStride<T>) {
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
    for (int t = 0; t < T; ++t) out[o * kWinogradStride<T> + t] = acc[o][t];
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

// Residual and activation of `width` pixels of a tile's row.
inline void winograd_store(const ConvArgs& a, const Four& four, int64_t offset, int width) {
  const Vec low = broadcast(a.low), high = broadcast(a.high);
  Vec* out = vectors(a.out.data) + offset;
  const Vec* residual = a.residual ? vectors(a.residual) + offset : nullptr;
  if (width >= 4 && residual) {
    RLAL_UNROLL
    for (int j = 0; j < 4; ++j) out[j] = clamp(four.v[j] + residual[j], low, high);
  } else if (width >= 4) {
    RLAL_UNROLL
    for (int j = 0; j < 4; ++j) out[j] = clamp(four.v[j], low, high);
  } else {
    for (int j = 0; j < width; ++j)
      out[j] = clamp(residual ? four.v[j] + residual[j] : four.v[j], low, high);
  }
}

// Rows 0 and 2, or 1 and 3, of one tile of one channel.
template <int PAIR, int T>
inline void winograd_output_rows(const ConvArgs& a, const Vec* from, int channel, int y, int x) {
  Vec first[6], second[6];
  RLAL_UNROLL
  for (int j = 0; j < 6; ++j) {
    const Pair pair = output_pair<PAIR, T>(from + j * T);
    first[j] = pair.first;
    second[j] = pair.second;
  }
  const int64_t column = channel * a.out.channel_stride + 4 * x;
  const int row = 4 * y + PAIR, width = a.out.width - 4 * x;
  if (row < a.out.height)
    winograd_store(a, output_transform(first), column + row_offset(a.out, row), width);
  if (row + 2 < a.out.height)
    winograd_store(a, output_transform(second), column + row_offset(a.out, row + 2), width);
}

// Inverse transform of one tile of one channel. At the right and lower edge of an image a part of
// the tile lies outside and is not stored.
template <int T>
inline void winograd_output(const ConvArgs& a, const Vec* from, int channel, int y, int x) {
  winograd_output_rows<0, T>(a, from, channel, y, x);
  winograd_output_rows<1, T>(a, from, channel, y, x);
}

template <int ROWS, int ACROSS>
void winograd_tiles(const ConvArgs& a, int y, int x) {
  constexpr int T = ROWS * ACROSS;
  const Split split(a.out.channels, RLAL_WINOGRAD_CHANNELS);
  Vec* transformed = vectors(a.scratch);
  Vec* products = transformed + a.in.channels * kWinogradStride<T>;
  winograd_input<ROWS, ACROSS>(a, transformed, y, x);
  const float* weights = a.weights;
  for (int position = 0; position < 36; ++position) {
    const Vec* in = transformed + position * T;
    Vec* out = products + position * T;
    for (int part = 0; part < split.parts; ++part) {
      const int size = split.size(part);
      winograd_part<RLAL_WINOGRAD_CHANNELS, T>(size, weights, in, a.in.channels, out);
      weights += static_cast<int64_t>(size) * a.in.channels;
      out += size * kWinogradStride<T>;
    }
  }
  // What is added to position (1, 1) comes out in every pixel of the tile.
  constexpr int kBiasPosition = 7;
  for (int o = 0; o < a.out.channels; ++o)
    for (int t = 0; t < T; ++t)
      products[o * kWinogradStride<T> + kBiasPosition * T + t] += broadcast(a.bias[o]);
  for (int o = 0; o < a.out.channels; ++o)
    for (int t = 0; t < T; ++t)
      winograd_output<T>(a, products + o * kWinogradStride<T> + t, o, y + t / ACROSS,
                         x + t % ACROSS);
}

// What is left of ROWS tile rows from tile column x on, in ever narrower blocks.
template <int ROWS, int ACROSS>
void winograd_rest(const ConvArgs& a, int across, int y, int x) {
  for (; x + ACROSS <= across; x += ACROSS) winograd_tiles<ROWS, ACROSS>(a, y, x);
  if constexpr (ACROSS > 1) winograd_rest<ROWS, ACROSS / 2>(a, across, y, x);
}

// Blocks of T tiles keep the registers full. Where a row of tiles ends in fewer, two rows give
// theirs together. The region is whole rows; its top is a multiple of 4, its bottom too or the
// image's.
void winograd(const ConvArgs& a, const Region& region) {
  constexpr int T = RLAL_WINOGRAD_TILES;
  const int down = (region.bottom + 3) / 4, across = (a.out.width + 3) / 4;
  int y = region.top / 4;
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
