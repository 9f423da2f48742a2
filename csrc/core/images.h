// Images in the layout of a program.
#pragma once

#include <cstdint>

#include "core/program.h"

namespace rlal {

class ImageBlocks {
 public:
  // images [count][channels][height][width], contiguous.
  ImageBlocks(const Program& program, const float* images, int64_t count, int threads);
  int64_t count() const { return count_; }
  int64_t blocks() const { return (count_ + lanes_ - 1) / lanes_; }
  int in_block(int64_t block) const;
  float* block(int64_t index) const { return storage_.data() + index * block_floats_; }

 private:
  int64_t count_, block_floats_;
  int lanes_;
  Buffer storage_;
};

}  // namespace rlal
