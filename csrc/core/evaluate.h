// Many sub-networks on many images: the calls behind rlal_fast.Evaluator.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/program.h"

namespace rlal {

// Images in the program's layout, laid out once per run.
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

using Interrupted = std::function<bool()>;

// correct[s] = images whose largest logit is at labels[image], for masks
// [subnets][program.classes()]. Returns false when interrupted.
bool count_correct(const Program& program, const ImageBlocks& images, const int64_t* labels,
                   const uint8_t* masks, int64_t subnets, int threads,
                   const Interrupted& interrupted, int64_t* correct);

// logits [images.count()][program.outputs()] of one sub-network. Returns false when interrupted.
bool logits(const Program& program, const ImageBlocks& images, const uint8_t* mask, int threads,
            const Interrupted& interrupted, float* out);

// Seconds that each operation takes for all images, on the calling thread.
std::vector<double> profile(const Program& program, const ImageBlocks& images, const uint8_t* mask);

}  // namespace rlal
