#include "tests/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace rlal {
namespace {

// Calls each(c, y, x) for every value.
template <typename Each>
void for_each(const Volume& volume, const Each& each) {
  for (int c = 0; c < volume.channels; ++c)
    for (int y = 0; y < volume.height; ++y)
      for (int x = 0; x < volume.width; ++x) each(c, y, x);
}

// Adds weight * input to one channel of the output, for tap (ky, kx).
void add_tap(const Window& w, int ky, int kx, double weight, const Volume& in, int c, int o,
             Volume* out) {
  for (int out_y = 0; out_y < out->height; ++out_y) {
    const int y = out_y * w.stride_h - w.pad_h + ky * w.dilation_h;
    if (y < 0 || y >= in.height) continue;
    for (int out_x = 0; out_x < out->width; ++out_x) {
      const int x = out_x * w.stride_w - w.pad_w + kx * w.dilation_w;
      if (x >= 0 && x < in.width) out->at(o, out_y, out_x) += weight * in.at(c, y, x);
    }
  }
}

void convolve(const OpSpec& op, const float* weights, const Volume& in, Volume* out) {
  const bool depthwise = op.kind == OpKind::depthwise;
  for (int o = 0; o < out->channels; ++o)
    for (int c = depthwise ? o : 0; c < (depthwise ? o + 1 : in.channels); ++c)
      for (int ky = 0; ky < op.window.kernel_h; ++ky)
        for (int kx = 0; kx < op.window.kernel_w; ++kx)
          add_tap(op.window, ky, kx, *weights++, in, c, o, out);
}

void pool(const OpSpec& op, const Volume& in, Volume* out) {
  const Window& w = op.window;
  for_each(*out, [&](int c, int out_y, int out_x) {
    double sum = 0, most = -std::numeric_limits<double>::infinity();
    int count = 0;
    for (int ky = 0; ky < w.kernel_h; ++ky)
      for (int kx = 0; kx < w.kernel_w; ++kx) {
        const int y = out_y * w.stride_h - w.pad_h + ky, x = out_x * w.stride_w - w.pad_w + kx;
        if (y < 0 || y >= in.height || x < 0 || x >= in.width) continue;
        sum += in.at(c, y, x);
        most = std::max(most, in.at(c, y, x));
        ++count;
      }
    if (op.count_padding) count = w.kernel_h * w.kernel_w;
    out->at(c, out_y, out_x) = op.kind == OpKind::max_pool ? most : sum / count;
  });
}

void select(const OpSpec& op, const Volume& in, Volume* out) {
  for_each(*out, [&](int c, int y, int x) {
    const int source = c - op.pad_before;
    if (source >= 0 && source < in.channels)
      out->at(c, y, x) = in.at(source, y * op.window.stride_h, x * op.window.stride_w);
  });
}

void add(const float* bias, const Volume* residual, Volume* out) {
  for_each(*out, [&](int c, int y, int x) {
    if (bias != nullptr) out->at(c, y, x) += bias[c];
    if (residual != nullptr) out->at(c, y, x) += residual->at(c, y, x);
  });
}

}  // namespace

Expected reference(const Network& network, const Weights& weights, const std::vector<uint8_t>& kept,
                   const float* image) {
  std::vector<Volume> tensors;
  for (const TensorSpec& t : network.tensors)
    tensors.emplace_back(static_cast<int>(t.classes.size()), t.height, t.width);
  std::vector<double>& first = tensors.front().values;
  std::copy_n(image, first.size(), first.begin());
  double largest = 0;
  for (size_t i = 0; i < network.ops.size(); ++i) {
    const OpSpec& op = network.ops[i];
    const TensorSpec& to = network.tensors[op.output];
    const Volume& in = tensors[op.input];
    const float* weight = weights.weights[i].data();
    Volume out(static_cast<int>(to.classes.size()), to.height, to.width);
    if (op.kind == OpKind::conv || op.kind == OpKind::depthwise) convolve(op, weight, in, &out);
    if (op.kind == OpKind::max_pool || op.kind == OpKind::avg_pool) pool(op, in, &out);
    if (op.kind == OpKind::select) select(op, in, &out);
    if (op.kind == OpKind::affine)
      for_each(out, [&](int c, int y, int x) { out.at(c, y, x) = weight[c] * in.at(c, y, x); });
    add(weights.bias[i].empty() ? nullptr : weights.bias[i].data(),
        op.residual < 0 ? nullptr : &tensors[op.residual], &out);
    largest = 0;
    for_each(out, [&](int c, int y, int x) {
      double& value = out.at(c, y, x);
      if (!kept[to.classes[c]]) value = 0;
      largest = std::max(largest, std::abs(value));
      value = std::min(std::max<double>(value, op.low), static_cast<double>(op.high));
    });
    tensors[op.output] = std::move(out);
  }
  return {tensors[network.ops.back().output], largest};
}

}  // namespace rlal
