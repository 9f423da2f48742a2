#include "core/packing.h"

#include <cstddef>

#include "core/winograd.h"

namespace rlal {

// Direct: [register tile of output channels][input channel][tap][channel in tile]; Winograd: the
// same for each of the 36 positions, which then is one tap; 1 x 1: the same for each chunk of input
// channels. So a kernel reads it straight through.
PackedConv pack_conv(const Kernels& kernels, const FullConv& conv, const std::vector<int>& out,
                     const std::vector<int>& in, int height, int width,
                     const std::vector<float>& scale) {
  const int outputs = static_cast<int>(out.size()), inputs = static_cast<int>(in.size());
  PackedConv packed;
  const float* from = conv.weights;
  if (conv.transformed != nullptr && winograd_pays(inputs, outputs, height, width)) {
    packed.winograd = true;
    from = conv.transformed;
  }
  const int64_t full_taps = static_cast<int64_t>(conv.window.kernel_h) * conv.window.kernel_w;
  const int64_t taps = packed.winograd ? 1 : full_taps;
  const int64_t positions = packed.winograd ? kWinogradPositions : 1;
  const Split tiles(outputs, packed.winograd ? kernels.winograd_channels : kernels.out_channels);
  const Split chunks(inputs, is_pointwise(conv.window) ? kernels.pointwise_inputs : inputs);
  packed.weights.resize(out.size() * in.size() * taps * positions);
  float* next = packed.weights.data();
  for (int64_t position = 0; position < positions; ++position, from += conv.full_in * conv.full_out)
    for (int chunk = 0, left = 0; chunk < chunks.parts; left += chunks.size(chunk), ++chunk)
      for (int tile = 0, first = 0; tile < tiles.parts; first += tiles.size(tile), ++tile)
        for (int c = left; c < left + chunks.size(chunk); ++c)
          for (int64_t tap = 0; tap < taps; ++tap)
            for (int o = first; o < first + tiles.size(tile); ++o)
              *next++ = from[(out[o] * conv.full_in + in[c]) * taps + tap] *
                        (scale.empty() ? 1.0f : scale[o]);
  return packed;
}

std::vector<float> pack_channels(const float* weights, int64_t taps, const std::vector<int>& kept,
                                 const ChannelAffine& affine) {
  std::vector<float> packed;
  packed.reserve(kept.size() * taps);
  for (std::size_t i = 0; i < kept.size(); ++i)
    for (int64_t tap = 0; tap < taps; ++tap) {
      const float weight = weights[kept[i] * taps + tap];
      packed.push_back(affine.scale.empty() ? weight : weight * affine.scale[i] + affine.shift[i]);
    }
  return packed;
}

}  // namespace rlal
