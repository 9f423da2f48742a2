#include "core/evaluate.h"

#include <algorithm>
#include <cmath>

#include "core/execution.h"
#include "core/parallel.h"

namespace rlal {
namespace {

constexpr int64_t kPackedAtOnce =
    16;  // keeps the memory of a call flat, whatever the number of sub-networks

const Interrupted kNever = [] { return false; };

// As torch: the first of equal logits wins, and NaN counts as the largest.
int argmax(const View& logits, int lanes, int lane) {
  int best = 0;
  float top = logits.data[lane];
  for (int c = 1; c < logits.channels; ++c) {
    const float value = logits.data[c * logits.channel_stride * lanes + lane];
    if (value > top || (std::isnan(value) && !std::isnan(top))) {
      top = value;
      best = c;
    }
  }
  return best;
}

class Arenas {  // one per thread, made by the thread that uses it
 public:
  Arenas(const Program& program, int threads) : program_(program), arenas_(std::max(threads, 1)) {}
  Arena& of(int thread) {
    if (arenas_[thread].slots.empty()) arenas_[thread] = program_.layout().make_arena();
    return arenas_[thread];
  }

 private:
  const Program& program_;
  std::vector<Arena> arenas_;
};

}  // namespace

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
      kNever);
}

int ImageBlocks::in_block(int64_t block) const {
  return static_cast<int>(std::min<int64_t>(lanes_, count_ - block * lanes_));
}

bool count_correct(const Program& program, const ImageBlocks& images, const int64_t* labels,
                   const uint8_t* masks, int64_t subnets, int threads,
                   const Interrupted& interrupted, int64_t* correct) {
  const int lanes = program.kernels().lanes;
  Arenas arenas(program, threads);
  std::fill(correct, correct + subnets, 0);
  for (int64_t first = 0; first < subnets; first += kPackedAtOnce) {
    const int64_t count = std::min(kPackedAtOnce, subnets - first);
    std::vector<Packed> packed(count);
    const auto pack = [&](int, int64_t s) {
      packed[s] = program.pack(masks + (first + s) * program.classes());
    };
    if (!run_parallel(threads, count, pack, interrupted)) return false;

    std::vector<int64_t> hits(
        count * images.blocks());  // one cell per item: nothing shared between threads
    const auto score = [&](int thread, int64_t item) {
      const int64_t s = item / images.blocks(), b = item % images.blocks();
      Execution execution(program, program.layout(), packed[s], arenas.of(thread));
      const View result = execution.run(images.block(b));
      for (int lane = 0; lane < images.in_block(b); ++lane)
        hits[item] += argmax(result, lanes, lane) == labels[b * lanes + lane];
    };
    if (!run_parallel(threads, count * images.blocks(), score, interrupted)) return false;
    for (int64_t item = 0; item < count * images.blocks(); ++item)
      correct[first + item / images.blocks()] += hits[item];
  }
  return true;
}

bool logits(const Program& program, const ImageBlocks& images, const uint8_t* mask, int threads,
            const Interrupted& interrupted, float* out) {
  const int lanes = program.kernels().lanes, classes = program.outputs();
  const Packed packed = program.pack(mask);
  Arenas arenas(program, threads);
  return run_parallel(
      threads, images.blocks(),
      [&](int thread, int64_t b) {
        Execution execution(program, program.layout(), packed, arenas.of(thread));
        const View result = execution.run(images.block(b));
        for (int lane = 0; lane < images.in_block(b); ++lane)
          for (int c = 0; c < classes; ++c)
            out[(b * lanes + lane) * classes + c] =
                result.data[c * result.channel_stride * lanes + lane];
      },
      interrupted);
}

std::vector<double> profile(const Program& program, const ImageBlocks& images,
                            const uint8_t* mask) {
  std::vector<double> seconds(program.network().ops.size());
  const Packed packed = program.pack(mask);
  Arena arena = program.layout().make_arena();
  Execution execution(program, program.layout(), packed, arena);
  for (int64_t b = 0; b < images.blocks(); ++b) execution.run(images.block(b), seconds.data());
  return seconds;
}

}  // namespace rlal
