// The kernels as functions of the host. All pointers are of the device; everything happens on the
// stream given, after what it holds already. They throw Error.
#pragma once

#include <cstdint>

#include "cuda/plan.h"
#include "cuda/runtime.h"

namespace rlal::cuda {

// Where results go: logits [image][outputs], or where null, counts.
struct Scores {
  const int64_t* labels;  // [image]
  int32_t* correct;       // [subnet]
  float* logits;
  int32_t outputs;
};

// ---- images: float [image][channel][pixel] and back ----

void load_images(const float* images, int64_t count, const TensorPlan& tensor, Precision precision,
                 unsigned char* out, Stream stream);
void store_images(const unsigned char* in, int64_t count, const TensorPlan& tensor,
                  Precision precision, float* images, Stream stream);

// ---- compact weights of many sub-networks, out of the full ones ----

struct PackArgs {
  const PackPlan* packs;  // [packings]
  const unsigned char* descriptors;
  const float* full;
  unsigned char* packed;
  const float* corrections;  // applied to what they are for; null: none
};

void pack(const PackArgs& args, Precision precision, int64_t packings, int64_t most_words,
          Stream stream);

// ---- batch norm statistics ----

// Of an operation's output [images] in `activations`, measured, and its batch norm with them.
struct NormArgs {
  OpPlan op;
  NormPlan norm;
  const unsigned char* descriptors;
  const float* full;
  const unsigned char* activations;
  int64_t images;
  double* partials;  // partial_doubles(most channels)
  float* corrections;
};

int64_t partial_doubles(int64_t channels);
void measure_norm(const NormArgs& args, Precision precision, Stream stream);

// ---- whole sub-networks, activations in shared memory ----

struct NetworkArgs {
  const OpPlan* ops;  // [subnet][op]
  int32_t op_count;
  const int32_t* subnets;  // those of this launch
  const unsigned char* descriptors;
  const unsigned char* packed;
  const unsigned char* images;
  int64_t image_bytes, image_count;
  int32_t images_per_block;
  Scores scores;
};

void run_network(const NetworkArgs& args, Precision precision, int subnets, int threads,
                 int64_t shared_bytes, Stream stream);

// ---- layers, activations in device memory ----

// The images that a launch works on: `batch` of them, from the index-th batch of `total`.
struct Cursor {
  int32_t* index;  // on the device, so that a recorded graph goes on to the next batch by itself
  int32_t batch;
  int64_t total;
};

struct LayerArgs {
  OpPlan op;
  const unsigned char* descriptors;
  const unsigned char* packed;
  const unsigned char* images;  // tensor 0
  unsigned char* activations;
  Cursor cursor;
};

void run_layer(const LayerArgs& args, Precision precision, Stream stream);

struct ScoreArgs {
  const unsigned char* activations;
  int64_t offset, image_bytes;  // of the logits
  int32_t subnet;
  Cursor cursor;
  Scores scores;
};

// Also moves the cursor to the next batch.
void score_layer(const ScoreArgs& args, Stream stream);

}  // namespace rlal::cuda
