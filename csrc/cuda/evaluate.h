// Many sub-networks on many images on a GPU: the calls behind rlal_fast's backend "cuda". Memory is
// the caller's; so is the stream, on which everything has happened once it has passed these calls.
#pragma once

#include <cstdint>

#include "cuda/kernels.h"
#include "cuda/plan.h"

namespace rlal::cuda {

struct Memory {
  const unsigned char* descriptors;  // a copy of Plan::descriptors
  const float* full;                 // FullWeights::count floats
  unsigned char* packed;             // Plan::packed_bytes
  unsigned char* activations;        // activation_bytes(), for sub-networks in layers
  const unsigned char* images;       // as load_images leaves them
  // For a recalibration; count 0: none.
  const unsigned char* recalibration_images;
  int64_t recalibration_count;
  unsigned char* recalibration;  // recalibration_bytes()
};

// Sub-networks in layers are run in this many streams.
int streams_for(const Plan& plan);
// Images that go through a layer at once, so that all streams together stay within `bytes`.
int64_t batch_for(const Plan& plan, int64_t images, int64_t bytes);
int64_t activation_bytes(const Plan& plan, int64_t batch);
// Activations of all images at once, and corrections.
int64_t recalibration_bytes(const Plan& plan, int64_t images);

// scores.correct [subnets], cleared first, or scores.logits of the only sub-network. Throws Error.
void evaluate(const Plan& plan, const Memory& memory, int64_t images, int64_t batch,
              const Scores& scores, Stream stream);

}  // namespace rlal::cuda
