#include "core/execution.h"

#include <algorithm>
#include <chrono>
#include <limits>

namespace rlal {
namespace {

// What a segment's interleaved rows may take of the second-level cache, in bytes.
constexpr int64_t kStreamedBytes = 384 << 10;
constexpr int kColumnStep = 8;  // pixels: full register tiles

struct Range {
  int first, end;
};

// The inputs that outputs [first, end) of a window read, inside an input of `size`.
Range inputs_of(Range out, int kernel, int stride, int pad, int dilation, int size) {
  return {std::max(out.first * stride - pad, 0),
          std::min((out.end - 1) * stride - pad + (kernel - 1) * dilation + 1, size)};
}

}  // namespace

View Execution::view(int tensor, float* images) const {
  const int channels = packed_.channels[tensor];
  return tensor == 0 ? layout_.view(0, images, channels) : layout_.view(tensor, arena_, channels);
}

View Execution::run(float* images, double* seconds) {
  for (const Segment& segment : layout_.segments()) {
    if (segment.first < segment.last) {
      run_streamed(segment, images, seconds);
    } else {
      const View out = view(program_.network().ops[segment.first].output, images);
      run_timed(segment.first, {0, out.height, 0, out.width}, images, seconds);
    }
  }
  return view(program_.network().ops.back().output, images);
}

void Execution::run_op(int i, float* images, bool raw) {
  const View out = view(program_.network().ops[i].output, images);
  run_region(i, {0, out.height, 0, out.width}, images, raw);
}

void Execution::finish_op(int i, float* images, const ChannelAffine& affine) {
  const OpSpec& op = program_.network().ops[i];
  const View out = view(op.output, images);
  const float* residual = op.residual < 0 ? nullptr : view(op.residual, images).data;
  program_.kernels().affine(
      {out, out, affine.scale.data(), affine.shift.data(), residual, op.low, op.high});
}

void Execution::run_timed(int i, const Region& region, float* images, double* seconds) {
  if (seconds == nullptr) return run_region(i, region, images);
  const auto start = std::chrono::steady_clock::now();
  run_region(i, region, images);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  seconds[i] += taken.count();
}

void Execution::run_region(int i, const Region& region, float* images, bool raw) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const OpSpec& op = program_.network().ops[i];
  const Kernels& kernels = program_.kernels();
  const View in = view(op.input, images), out = view(op.output, images);
  const float* residual = op.residual < 0 || raw ? nullptr : view(op.residual, images).data;
  const float *weights = packed_.weights[i].weights.data(), *bias = packed_.bias[i].data();
  const float low = raw ? -kInfinity : op.low, high = raw ? kInfinity : op.high;
  const ConvArgs conv{
      in, out, residual, weights, bias, op.window, low, high, arena_.scratch.data()};
  switch (op.kind) {
    case OpKind::conv:
      (packed_.weights[i].winograd ? kernels.winograd : kernels.conv)(conv, region);
      break;
    case OpKind::depthwise:
      kernels.depthwise(conv, region);
      break;
    case OpKind::max_pool:
      kernels.max_pool({in, out, op.window, op.count_padding}, region);
      break;
    case OpKind::avg_pool:
      kernels.avg_pool({in, out, op.window, op.count_padding}, region);
      break;
    case OpKind::affine:
      kernels.affine({in, out, weights, bias, residual, low, high});
      break;
    case OpKind::select:
      kernels.select({in, out, packed_.sources[i].data(), op.window.stride_h, op.window.stride_w});
      break;
  }
}

// Columns of the segment's result that are computed together; all where Winograd's tiles would not
// fit the blocks.
int Execution::streamed_columns(const Segment& segment) const {
  const Network& network = program_.network();
  const int width = network.tensors[network.ops[segment.last].output].width;
  for (int i = segment.first; i <= segment.last; ++i)
    if (packed_.weights[i].winograd) return width;
  int64_t bytes = 0, pixels = 1;  // per column of the result; pixels of this tensor per column
  for (int i = segment.last; i > segment.first; --i) {
    pixels *= network.ops[i].window.stride_w;
    const View between = view(network.ops[i].input, nullptr);
    bytes += pixels * between.stored * between.channels * program_.kernels().lanes *
             static_cast<int64_t>(sizeof(float));
  }
  const int64_t fit = std::max<int64_t>(kStreamedBytes / bytes, kColumnStep);
  const int64_t blocks = (width + fit - 1) / fit;
  const int64_t columns = (width + blocks - 1) / blocks;
  return static_cast<int>((columns + kColumnStep - 1) / kColumnStep * kColumnStep);
}

// Row by row of the result: each operation first has the one before it produce the rows that it
// reads. Neighbouring blocks of columns compute the columns twice that both read.
void Execution::run_streamed(const Segment& segment, float* images, double* seconds) {
  const Network& network = program_.network();
  const int count = segment.last - segment.first + 1;
  const View out = view(network.ops[segment.last].output, images);
  const int step = streamed_columns(segment);
  std::vector<Range> columns(count);
  std::vector<int> done(count);

  const auto produce = [&](const auto& self, int k) -> void {
    const int i = segment.first + k, top = done[k];
    const Window& w = network.ops[i].window;
    const int bottom =
        std::min(top + rows_at_once(network, i), network.tensors[network.ops[i].output].height);
    done[k] = bottom;
    if (k > 0) {
      const int height = network.tensors[network.ops[i].input].height;
      const Range rows =
          inputs_of({top, bottom}, w.kernel_h, w.stride_h, w.pad_h, w.dilation_h, height);
      while (done[k - 1] < rows.end) self(self, k - 1);
    }
    run_timed(i, {top, bottom, columns[k].first, columns[k].end}, images, seconds);
  };

  for (int left = 0; left < out.width; left += step) {
    columns[count - 1] = {left, std::min(left + step, out.width)};
    for (int k = count - 1; k > 0; --k) {
      const OpSpec& op = network.ops[segment.first + k];
      const Window& w = op.window;
      columns[k - 1] = inputs_of(columns[k], w.kernel_w, w.stride_w, w.pad_w, w.dilation_w,
                                 network.tensors[op.input].width);
    }
    std::fill(done.begin(), done.end(), 0);
    while (done[count - 1] < out.height) produce(produce, count - 1);
  }
}

}  // namespace rlal
