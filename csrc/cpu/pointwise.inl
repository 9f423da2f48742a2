// 1 x 1 convolution, included by kernels.inl once per instruction set: a matrix product over the
// channels, for a stretch of pixels whose inputs stay in the first-level cache while all output
// channels are computed. Where they are too many, the input channels go in chunks, and the sums
// wait in the output.

// Four pixels of as many channels fill what is kept of the inputs.
constexpr int kPointwiseInputs = static_cast<int>(kInputsAtOnce / sizeof(Vec)) / 4;

// Some pixels of the output and the input channels of one chunk.
struct Stretch {
  const Vec* in;  // [channels][pixels]
  int64_t in_stride;
  int channels, pixels;
  const int64_t* out_pixels;  // where they lie in a channel of the output
  bool first, last;           // chunk
};

// What a store could change as far as the compiler knows is copied first.
template <int OC, int PX>
void pointwise_tile(const ConvArgs& a, const Stretch& s, const float* weights, int channel, int x) {
  const int64_t stride = a.out.channel_stride, start = channel * stride;
  int64_t pixels[PX];
  RLAL_UNROLL
  for (int p = 0; p < PX; ++p) pixels[p] = start + s.out_pixels[x + p];
  Vec* const out = vectors(a.out.data);
  const Vec* const added = s.first ? vectors(a.residual) : out;  // may be null
  Vec acc[OC][PX];
  RLAL_UNROLL
  for (int o = 0; o < OC; ++o) {
    const Vec bias = broadcast(s.first ? a.bias[channel + o] : 0.0f);
    RLAL_UNROLL
    for (int p = 0; p < PX; ++p) acc[o][p] = bias;
  }
  if (added != nullptr) {
    RLAL_UNROLL
    for (int o = 0; o < OC; ++o) {
      RLAL_UNROLL
      for (int p = 0; p < PX; ++p) acc[o][p] += added[o * stride + pixels[p]];
    }
  }
  const Vec* pixel = s.in + x;
  const int64_t in_stride = s.in_stride;
  for (int c = s.channels; c > 0; --c, pixel += in_stride, weights += OC) {
    Vec in[PX];
    RLAL_UNROLL
    for (int p = 0; p < PX; ++p) in[p] = pixel[p];
    RLAL_UNROLL
    for (int o = 0; o < OC; ++o) {
      const Vec weight = broadcast(weights[o]);
      RLAL_UNROLL
      for (int p = 0; p < PX; ++p) acc[o][p] += weight * in[p];
    }
  }
  constexpr float kInfinity = __builtin_huge_valf();
  const Vec low = broadcast(s.last ? a.low : -kInfinity);
  const Vec high = broadcast(s.last ? a.high : kInfinity);
  RLAL_UNROLL
  for (int p = 0; p < PX; ++p) {
    Vec* pixel_out = out + pixels[p];
    RLAL_UNROLL
    for (int o = 0; o < OC; ++o) pixel_out[o * stride] = clamp(acc[o][p], low, high);
  }
}

template <int OC, int PX>
inline void pointwise_tail(const ConvArgs& a, const Stretch& s, const float* weights, int channel,
                           int x) {
  if constexpr (PX > 0) {
    if (s.pixels - x == PX)
      pointwise_tile<OC, PX>(a, s, weights, channel, x);
    else
      pointwise_tail<OC, PX - 1>(a, s, weights, channel, x);
  }
}

template <int OC>
inline void pointwise_part(int size, const ConvArgs& a, const Stretch& s, const float* weights,
                           int channel) {
  if constexpr (OC > 0) {
    if (size != OC) return pointwise_part<OC - 1>(size, a, s, weights, channel);
    constexpr int PX = tile_pixels<OC>();
    int x = 0;
    for (; x + PX <= s.pixels; x += PX) pointwise_tile<OC, PX>(a, s, weights, channel, x);
    pointwise_tail<OC, PX - 1>(a, s, weights, channel, x);
  }
}

// All output channels of a stretch; `in` holds all of its input channels.
void pointwise_stretch(const ConvArgs& a, const Vec* in, int64_t in_stride, int pixels,
                       const int64_t* out_pixels) {
  const Split split(a.out.channels, RLAL_TILE_CHANNELS);
  const Split chunks(a.in.channels, kPointwiseInputs);
  const float* weights = a.weights;
  int from = 0;
  for (int chunk = 0; chunk < chunks.parts; from += chunks.size(chunk), ++chunk) {
    const Stretch s{
        in + from * in_stride,    in_stride, chunks.size(chunk), pixels, out_pixels, chunk == 0,
        chunk == chunks.parts - 1};
    int channel = 0;
    for (int part = 0; part < split.parts; ++part) {
      const int size = split.size(part);
      pointwise_part<RLAL_TILE_CHANNELS>(size, a, s, weights, channel);
      weights += static_cast<int64_t>(size) * s.channels;
      channel += size;
    }
  }
}

constexpr int kStretchPixels = 64;  // at most

// As many whole tiles as keep all input channels in the first-level cache, at least one.
inline int pointwise_pixels(const ConvArgs& a) {
  constexpr int kTile = RLAL_TILE_PIXELS;
  const int fit = static_cast<int>(kInputsAtOnce / sizeof(Vec)) / a.in.channels / kTile * kTile;
  return fit < kTile ? kTile : fit > kStretchPixels ? kStretchPixels / kTile * kTile : fit;
}

// Tiles within a row read their pixels where they are.
void pointwise_rows(const ConvArgs& a, const Region& region) {
  const int most = pointwise_pixels(a);
  int64_t out_pixels[kStretchPixels];
  for (int y = region.top; y < region.bottom; ++y)
    for (int left = region.left; left < region.right; left += most) {
      const int pixels = left + most < region.right ? most : region.right - left;
      for (int p = 0; p < pixels; ++p) out_pixels[p] = row_offset(a.out, y) + left + p;
      pointwise_stretch(a, vectors(a.in.data) + row_offset(a.in, y) + left, a.in.channel_stride,
                        pixels, out_pixels);
    }
}

// Tiles across rows, or with a stride: their pixels are gathered into scratch first.
void pointwise_gathered(const ConvArgs& a, const Region& region) {
  const int most = pointwise_pixels(a), columns = region.right - region.left;
  const int count = columns * (region.bottom - region.top);
  int64_t in_pixels[kStretchPixels], out_pixels[kStretchPixels];
  Vec* gathered = vectors(a.scratch);
  for (int first = 0; first < count; first += most) {
    const int pixels = first + most < count ? most : count - first;
    for (int p = 0; p < pixels; ++p) {
      const int y = region.top + (first + p) / columns, x = region.left + (first + p) % columns;
      in_pixels[p] = row_offset(a.in, y * a.window.stride_h) + x * a.window.stride_w;
      out_pixels[p] = row_offset(a.out, y) + x;
    }
    const Vec* channel = vectors(a.in.data);
    for (int c = 0; c < a.in.channels; ++c, channel += a.in.channel_stride)
      for (int p = 0; p < pixels; ++p) gathered[c * pixels + p] = channel[in_pixels[p]];
    pointwise_stretch(a, gathered, pixels, pixels, out_pixels);
  }
}

// Padding 0. Gathering pays where rows end in the middle of a tile and many outputs share the work.
void pointwise(const ConvArgs& a, const Region& region) {
  const int columns = region.right - region.left;
  const bool broken = columns % RLAL_TILE_PIXELS != 0 && region.bottom - region.top > 1 &&
                      a.out.channels > 3 * RLAL_TILE_CHANNELS;
  if (broken || a.window.stride_h != 1 || a.window.stride_w != 1)
    pointwise_gathered(a, region);
  else
    pointwise_rows(a, region);
}
