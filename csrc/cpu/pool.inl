// Pooling, included by kernels.inl once per instruction set.

template <bool MAX>
inline Vec pooled(Vec sum, Vec value) {
  if (MAX) return (value > sum) | (value != value) ? value : sum;  // NaN wins, as in torch
  return sum + value;
}

// Kernel columns that lie inside the image, for one output column.
struct Columns {
  int first, last;
};

inline Columns columns_inside(const Window& w, int in_width, int x) {
  const int left = x * w.stride_w - w.pad_w;
  return {left < 0 ? -left : 0, left + w.kernel_w > in_width ? in_width - left : w.kernel_w};
}

template <bool MAX>
void pool(const PoolArgs& a, const Region& region) {
  const Window& w = a.window;
  const Vec start = broadcast(MAX ? -__builtin_huge_valf() : 0.0f);
  const int64_t row_stride = a.in.row_stride;
  for (int c = 0; c < a.out.channels; ++c)
    for (int y = region.top; y < region.bottom; ++y) {
      const Rows rows = rows_inside(w, a.in, y);
      const Vec* in = vectors(a.in.data) + c * a.in.channel_stride + rows.start - w.pad_w;
      Vec* out = vectors(a.out.data) + c * a.out.channel_stride + row_offset(a.out, y);
      for (int x = region.left; x < region.right; ++x) {
        const Columns columns = columns_inside(w, a.in.width, x);
        Vec sum = start;
        for (int ky = rows.first; ky < rows.last; ++ky) {
          const Vec* pixel =
              in + ky * row_stride - (ky < rows.wrap ? 0 : rows.wrapped) + x * w.stride_w;
          for (int kx = columns.first; kx < columns.last; ++kx) sum = pooled<MAX>(sum, pixel[kx]);
        }
        if (!MAX) {
          const int inside = (rows.last - rows.first) * (columns.last - columns.first);
          sum = sum /
                broadcast(static_cast<float>(a.count_padding ? w.kernel_h * w.kernel_w : inside));
        }
        out[x] = sum;
      }
    }
}
