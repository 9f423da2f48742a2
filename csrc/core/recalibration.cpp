#include "core/recalibration.h"

#include <algorithm>
#include <cmath>

namespace rlal {
namespace {

// A batch norm with these statistics.
ChannelAffine normalising(const Norm& norm, const std::vector<int>& kept,
                          const std::vector<double>& mean, const std::vector<double>& variance) {
  ChannelAffine affine;
  for (size_t i = 0; i < kept.size(); ++i) {
    const double scale = norm.weight[kept[i]] / std::sqrt(variance[i] + norm.eps);
    affine.scale.push_back(static_cast<float>(scale));
    affine.shift.push_back(static_cast<float>(norm.bias[kept[i]] - scale * mean[i]));
  }
  return affine;
}

}  // namespace

Recalibration::Recalibration(const Program& program, const ImageBlocks& images)
    : program_(program),
      images_(images),
      layout_(program.network(), program.kernels().lanes, Layout::Storage::whole) {
  for (int64_t b = 0; b < images.blocks(); ++b) arenas_.push_back(layout_.make_arena());
}

Recalibration::Statistics Recalibration::measure(const Packed& packed, int tensor) const {
  const Kernels& kernels = program_.kernels();
  const int channels = packed.channels[tensor];
  Statistics found;
  int64_t count = 0;
  for (int64_t b = 0; b < images_.blocks(); ++b) {
    const View v = layout_.view(tensor, arenas_[b], channels);
    count += static_cast<int64_t>(images_.in_block(b)) * v.height * v.width;
  }
  const auto n = static_cast<double>(count);
  for (int c = 0; c < channels; ++c) {
    // A value of the channel itself is near enough to its mean that no digits are lost between
    // the mean of the squares and the square of the mean.
    const View start = layout_.view(tensor, arenas_.front(), channels);
    const float pivot = start.data[c * start.channel_stride * kernels.lanes];
    double sum = 0, squares = 0;
    for (int64_t b = 0; b < images_.blocks(); ++b)
      kernels.moments(layout_.view(tensor, arenas_[b], channels), c, images_.in_block(b), pivot,
                      &sum, &squares);
    found.mean.push_back(pivot + sum / n);
    found.variance.push_back(std::max(squares / n - (sum / n) * (sum / n), 0.0));
  }
  found.unbiased = count > 1 ? n / (n - 1) : 1;
  return found;
}

Packed Recalibration::pack(const uint8_t* kept_classes) {
  const Packed plain = program_.pack(kept_classes);
  const Network& network = program_.network();
  std::vector<ChannelAffine> corrections(network.ops.size());
  for (size_t i = 0; i < network.ops.size(); ++i) {
    const int op = static_cast<int>(i);
    const Norm* norm = program_.norm(op);
    for (int64_t b = 0; b < images_.blocks(); ++b) {
      Execution execution(program_, layout_, plain, arenas_[b]);
      execution.run_op(op, images_.block(b), norm != nullptr);
    }
    if (norm == nullptr) continue;
    const int output = network.ops[i].output;
    Statistics found = measure(plain, output);
    const std::vector<int> kept = program_.kept(output, kept_classes);
    const ChannelAffine passing = normalising(*norm, kept, found.mean, found.variance);
    for (int64_t b = 0; b < images_.blocks(); ++b) {
      Execution execution(program_, layout_, plain, arenas_[b]);
      execution.finish_op(op, images_.block(b), passing);
    }
    for (double& variance : found.variance) variance *= found.unbiased;
    corrections[i] = normalising(*norm, kept, found.mean, found.variance);
  }
  return program_.pack(kept_classes, &corrections);
}

}  // namespace rlal
