#include "core/evaluate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include "core/execution.h"
#include "core/parallel.h"
#include "core/recalibration.h"

namespace rlal {
namespace {

constexpr int64_t kPackedAtOnce =
    16;  // keeps the memory of a call flat, whatever the number of sub-networks

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

// What each thread needs for itself, made by the thread that uses it.
class Workspaces {
 public:
  Workspaces(const Program& program, const ImageBlocks* recalibration, int threads)
      : program_(program),
        recalibration_(recalibration),
        arenas_(std::max(threads, 1)),
        recalibrations_(std::max(threads, 1)) {}

  Arena& arena(int thread) {
    if (arenas_[thread].slots.empty()) arenas_[thread] = program_.layout().make_arena();
    return arenas_[thread];
  }

  Packed pack(int thread, const uint8_t* mask) {
    if (recalibration_ == nullptr) return program_.pack(mask);
    std::unique_ptr<Recalibration>& own = recalibrations_[thread];
    if (own == nullptr) own = std::make_unique<Recalibration>(program_, *recalibration_);
    return own->pack(mask);
  }

 private:
  const Program& program_;
  const ImageBlocks* recalibration_;
  std::vector<Arena> arenas_;
  std::vector<std::unique_ptr<Recalibration>> recalibrations_;
};

}  // namespace

bool count_correct(const Program& program, const ImageBlocks& images, const ImageRange& range,
                   const int64_t* labels, const uint8_t* masks, int64_t subnets,
                   const ImageBlocks* recalibration, int threads, const Interrupted& interrupted,
                   int64_t* correct) {
  const int lanes = program.kernels().lanes;
  const int64_t first_block = range.first / lanes;
  const int64_t blocks =
      range.first == range.end ? 0 : (range.end + lanes - 1) / lanes - first_block;
  Workspaces spaces(program, recalibration, threads);
  std::fill(correct, correct + subnets, 0);
  for (int64_t first = 0; first < subnets; first += kPackedAtOnce) {
    const int64_t count = std::min(kPackedAtOnce, subnets - first);
    std::vector<Packed> packed(count);
    const auto pack = [&](int thread, int64_t s) {
      packed[s] = spaces.pack(thread, masks + (first + s) * program.classes());
    };
    if (!run_parallel(threads, count, pack, interrupted)) return false;

    std::vector<int64_t> hits(count * blocks);  // one cell per item: nothing shared between threads
    const auto score = [&](int thread, int64_t item) {
      const int64_t s = item / blocks, b = first_block + item % blocks;
      Execution execution(program, program.layout(), packed[s], spaces.arena(thread));
      const View result = execution.run(images.block(b));
      const int64_t end = std::min<int64_t>((b + 1) * lanes, range.end);
      for (int64_t image = std::max(b * lanes, range.first); image < end; ++image)
        hits[item] += argmax(result, lanes, static_cast<int>(image - b * lanes)) == labels[image];
    };
    if (!run_parallel(threads, count * blocks, score, interrupted)) return false;
    for (int64_t item = 0; item < count * blocks; ++item)
      correct[first + item / blocks] += hits[item];
  }
  return true;
}

bool logits(const Program& program, const ImageBlocks& images, const uint8_t* mask,
            const ImageBlocks* recalibration, int threads, const Interrupted& interrupted,
            float* out) {
  const int lanes = program.kernels().lanes, classes = program.outputs();
  Workspaces spaces(program, recalibration, threads);
  Packed packed;
  if (!run_parallel(
          1, 1, [&](int thread, int64_t) { packed = spaces.pack(thread, mask); }, interrupted))
    return false;
  return run_parallel(
      threads, images.blocks(),
      [&](int thread, int64_t b) {
        Execution execution(program, program.layout(), packed, spaces.arena(thread));
        const View result = execution.run(images.block(b));
        for (int lane = 0; lane < images.in_block(b); ++lane)
          for (int c = 0; c < classes; ++c)
            out[(b * lanes + lane) * classes + c] =
                result.data[c * result.channel_stride * lanes + lane];
      },
      interrupted);
}

double fma_peak(const Kernels& kernels) {
  constexpr int kTries = 20, kRounds = 200000;  // about a millisecond each
  double best = 0;
  for (int i = 0; i < kTries; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const auto operations = static_cast<double>(kernels.fma_loop(kRounds));
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::max(best, operations / taken.count());
  }
  return best;
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
