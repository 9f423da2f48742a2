#include "core/masked_conv.h"

#include <algorithm>
#include <numeric>

#include "core/layout.h"
#include "core/packing.h"
#include "core/parallel.h"
#include "core/winograd.h"

namespace rlal {
namespace {

// The convolution as a network of one operation.
Network network_of(const MaskedConv& conv) {
  Network network;
  network.tensors = {
      {conv.height, conv.width, std::vector<int32_t>(conv.kept_in.size())},
      {conv.out_height(), conv.out_width(), std::vector<int32_t>(conv.kept_out.size())}};
  network.ops = {{conv.depthwise ? OpKind::depthwise : OpKind::conv, 0, 1, -1, conv.window,
                  conv.low, conv.high, false, 0}};
  return network;
}

// Transforming the weights costs as much as multiplying them with some images.
PackedConv pack(const Kernels& kernels, const MaskedConv& conv, int threads) {
  const int64_t taps = static_cast<int64_t>(conv.window.kernel_h) * conv.window.kernel_w;
  if (conv.depthwise) return {false, pack_channels(conv.weight, taps, conv.kept_out)};
  const int64_t outputs = static_cast<int64_t>(conv.kept_out.size());
  const int64_t inputs = static_cast<int64_t>(conv.kept_in.size());
  std::vector<float> kept(outputs * inputs * taps);  // so that only these are transformed
  float* next = kept.data();
  for (const int o : conv.kept_out)
    for (const int c : conv.kept_in)
      next = std::copy_n(conv.weight + (static_cast<int64_t>(o) * conv.full_in + c) * taps, taps,
                         next);
  std::vector<float> transformed;
  if (winograd_applies(conv.window)) {
    transformed.resize(kWinogradPositions * outputs * inputs);
    transform_weights(kept.data(), nullptr, outputs, inputs, threads, transformed.data());
  }
  std::vector<int> out(outputs), in(inputs);
  std::iota(out.begin(), out.end(), 0);
  std::iota(in.begin(), in.end(), 0);
  const FullConv full{kept.data(), transformed.empty() ? nullptr : transformed.data(), outputs,
                      inputs, conv.window};
  return pack_conv(kernels, full, out, in, conv.out_height(), conv.out_width());
}

struct Workspace {  // of one thread
  Buffer images;
  Arena arena;
};

}  // namespace

bool run_masked_conv(const Kernels& kernels, const MaskedConv& conv, int threads,
                     const Interrupted& interrupted, float* out) {
  if (conv.images == 0 || conv.kept_out.empty()) return true;
  const int in_channels = static_cast<int>(conv.kept_in.size());
  const int out_channels = static_cast<int>(conv.kept_out.size());
  const int lanes = kernels.lanes;
  const PackedConv packed = pack(kernels, conv, threads);
  const std::vector<float> bias = pack_channels(conv.bias, 1, conv.kept_out);
  const Layout layout(network_of(conv), lanes, Layout::Storage::whole);
  const int64_t blocks = (conv.images + lanes - 1) / lanes;
  std::vector<Workspace> spaces(std::max<int64_t>(std::min<int64_t>(threads, blocks), 1));

  const int64_t in_stride = static_cast<int64_t>(in_channels) * conv.height * conv.width;
  const int64_t out_stride =
      static_cast<int64_t>(out_channels) * conv.out_height() * conv.out_width();
  return run_parallel(
      threads, blocks,
      [&](int thread, int64_t b) {
        Workspace& space = spaces[thread];
        if (space.arena.slots.empty()) space = {Buffer(layout.image_floats()), layout.make_arena()};
        const View in = layout.view(0, space.images.data(), in_channels);
        const View result = layout.view(1, space.arena, out_channels);
        const int count = static_cast<int>(std::min<int64_t>(lanes, conv.images - b * lanes));
        kernels.load_images(conv.x + b * lanes * in_stride, in_stride, count, in);
        ConvArgs args{in,          result,   nullptr,   packed.weights.data(),     bias.data(),
                      conv.window, conv.low, conv.high, space.arena.scratch.data()};
        if (conv.residual != nullptr) {  // a kernel may read it where it writes the result
          kernels.load_images(conv.residual + b * lanes * out_stride, out_stride, count, result);
          args.residual = result.data;
        }
        (packed.winograd  ? kernels.winograd
         : conv.depthwise ? kernels.depthwise
                          : kernels.conv)(args, {0, result.height, 0, result.width});
        kernels.store_images(result, out + b * lanes * out_stride, out_stride, count);
      },
      interrupted);
}

}  // namespace rlal
