#include "core/images.h"

#include <algorithm>

#include "core/parallel.h"

namespace rlal {

ImageBlocks::ImageBlocks(const Program& program, const float* images, int64_t count, int threads)
    : count_(count),
      block_floats_(program.layout().image_floats()),
      lanes_(program.kernels().lanes) {
  storage_ = Buffer(blocks() * block_floats_);
  const TensorSpec& in = program.input();
  const int channels = static_cast<int>(in.classes.size());
  const int64_t stride = static_cast<int64_t>(channels) * in.height * in.width;
  run_parallel(
      threads, blocks(),
      [&](int, int64_t b) {
        program.kernels().load_images(images + b * lanes_ * stride, stride, in_block(b),
                                      program.layout().view(0, block(b), channels));
      },
      [] { return false; });
}

int ImageBlocks::in_block(int64_t block) const {
  return static_cast<int>(std::min<int64_t>(lanes_, count_ - block * lanes_));
}

}  // namespace rlal
