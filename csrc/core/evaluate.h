// Many sub-networks on many images: the calls behind rlal_fast.Evaluator.
#pragma once

#include <cstdint>
#include <vector>

#include "core/images.h"
#include "core/parallel.h"
#include "core/program.h"

namespace rlal {

// Images first .. end - 1 of what ImageBlocks holds.
struct ImageRange {
  int64_t first, end;
};

// correct[s] = images of the range whose largest logit is at labels[image], for labels of all
// images and masks [subnets][program.classes()], after a recalibration where there are images for
// it. Returns false when interrupted.
bool count_correct(const Program& program, const ImageBlocks& images, const ImageRange& range,
                   const int64_t* labels, const uint8_t* masks, int64_t subnets,
                   const ImageBlocks* recalibration, int threads, const Interrupted& interrupted,
                   int64_t* correct);

// logits [images.count()][program.outputs()] of one sub-network. Returns false when interrupted.
bool logits(const Program& program, const ImageBlocks& images, const uint8_t* mask,
            const ImageBlocks* recalibration, int threads, const Interrupted& interrupted,
            float* out);

// Floating point operations per second of one thread that does nothing else but fused
// multiply-adds, best of several tries; 0 where the instruction set has none.
double fma_peak(const Kernels& kernels);

// Seconds that each operation takes for all images, on the calling thread.
std::vector<double> profile(const Program& program, const ImageBlocks& images, const uint8_t* mask);

}  // namespace rlal
