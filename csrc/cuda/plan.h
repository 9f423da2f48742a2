// What a GPU needs to know of each sub-network: where its tensors lie, which weights it reads, how
// it is packed. Made on the host by plain C++, read by the kernels as it is.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/network.h"

namespace rlal::cuda {

enum class Precision { fp32, tf32, fp16, bf16 };

Precision precision_from(const std::string& name);  // throws std::invalid_argument
int stored_bytes(Precision precision);              // of one activation

// Tensors are [image][chunk][pixel][16 bytes], a chunk being as many channels as go into 16 bytes;
// channels that fill up the last chunk are zero.
struct TensorPlan {
  int64_t offset;  // bytes per image that others take up before it; kImages: tensor 0, see below
  int64_t image_bytes;
  int32_t channels, chunks, height, width;
};

constexpr int64_t kImages = -1;  // where tensor 0 is read in place
constexpr int64_t kNone = -2;

// Division by a number that the host knows, of 0 <= n < 2^31: n * multiplier >> shift, see
// Granlund and Montgomery, "Division by Invariant Integers using Multiplication" (1994).
struct Divisor {
  uint32_t multiplier = 0, shift = 0;
};

Divisor divisor(int by);

struct OpPlan {
  OpKind kind;
  int32_t logits;  // the last operation: its output is float [image][channels]
  TensorPlan in, out;
  int64_t residual;  // as TensorPlan::offset, of a tensor of out's shape; kNone
  Window window;
  float low, high;
  int32_t count_padding;
  // Packed weights: bytes from their start.
  //   conv, tensor cores: [k_step][n_tile][lane][2 words], the B fragments of each product
  //   conv, fp32:         [n_tile][tap][in chunk][8 outputs][4 inputs]
  //   depthwise:          float [tap][channel]; affine: float [channel]
  // and biases: float [out.channels up to a multiple of 8].
  int64_t weights, bias;
  int64_t sources;              // select: bytes from the start of the descriptors, int32 [channel]
  int32_t k_steps, n_tiles;     // conv: pairs of (tap, chunk) and groups of 8 outputs
  Divisor by_pixels, by_width;  // of the output
};

struct PackPlan {
  OpKind kind;
  int32_t chunk;                  // channels in it
  int32_t inputs, outputs, taps;  // that are kept
  int32_t full_inputs, in_chunks, k_steps, n_tiles;
  int64_t full_weights, full_bias;  // floats from the start of the full weights
  int64_t kept_in, kept_out;        // bytes from the start of the descriptors, int32
  int64_t weights, bias;            // as in OpPlan
  int64_t corrected;                // NormPlan::corrected, or -1
  int64_t words;                    // of 4 bytes, in the packed weights
};

// A batch norm whose statistics are measured for each sub-network. Scales and shifts are floats, as
// many as channels in whole chunks, from the start of the corrections.
struct NormPlan {
  int64_t full;  // floats from the start of the full weights: weight [full], bias [full]; -1: none
  int32_t full_channels;
  float eps;
  int64_t kept_out;            // as in PackPlan
  int64_t passing, corrected;  // scale, then shift: with the biased variance, with the unbiased
};

// How a sub-network is run. whole: one block carries images through all layers, activations in
// shared memory. layers: one launch for each layer, activations in device memory.
enum class Path { whole, layers, automatic };

Path path_from(const std::string& name);  // throws std::invalid_argument

struct SubnetPlan {
  std::vector<OpPlan> ops;
  std::vector<OpPlan> recalibration;  // in layers, no result in the place of a residual
  std::vector<NormPlan> norms;        // per op, where there is a recalibration
  int64_t image_bytes;  // all its activations at once, of one image; tensor 0 counts where whole
  bool whole;
};

// The sub-networks of one call.
struct Plan {
  Precision precision;
  std::vector<SubnetPlan> subnets;
  int outputs;  // logits of an image

  // Of the whole-network kernel, for all sub-networks that it takes.
  int images_per_block = 0, threads = 0;
  int64_t shared_bytes = 0;

  // [OpPlan of subnet, op] [PackPlan of subnet, op] [index of whole subnets] [lists of channels]
  std::vector<unsigned char> descriptors;
  int64_t pack_plans = 0, whole_subnets = 0;  // offsets in it
  int whole_count = 0;
  int64_t packed_bytes = 0;  // weights of all sub-networks
  int64_t most_pack_words = 0;
  int64_t layer_image_bytes = 0;  // the most that a sub-network run in layers needs for an image
  int64_t most_pixels = 1;        // of a tensor
  int64_t recalibration_image_bytes = 0, most_channels = 0;  // in whole chunks
  int64_t corrections = 0;                                   // floats
};

// Where the full weights of each operation lie, in floats; -1 where it has none.
struct FullWeights {
  std::vector<int64_t> weights, bias, norm;  // norm: its weight, then its bias
  std::vector<float> eps;
  int64_t count = 0;
};

// `norm_eps` holds the epsilon of each operation's batch norm, NaN where there is none; empty if
// batch norms are folded into the weights.
FullWeights full_weights(const Network& network, const std::vector<float>& norm_eps);

// Shared memory holds this many bytes for all blocks of a multiprocessor, and for one block.
struct SharedMemory {
  int64_t multiprocessor, block;
};

// masks [subnets][classes]. Throws std::invalid_argument: a network without a plan, or Path::whole
// for a sub-network that is too large for it.
Plan make_plan(const Network& network, const FullWeights& full, Precision precision, Path path,
               const SharedMemory& shared, const uint8_t* masks, int64_t subnets, int classes);

// An operation alone; what it leaves open is where its weights and its residual lie.
OpPlan plan_op(const OpSpec& spec, const TensorPlan& in, const TensorPlan& out,
               Precision precision);
PackPlan plan_packing(const OpSpec& spec, const OpPlan& op, int full_inputs, Precision precision);
TensorPlan plan_tensor(int channels, int height, int width, Precision precision);
int64_t packed_weight_bytes(const OpPlan& op, Precision precision);
int64_t packed_bias_bytes(const OpPlan& op);

// Threads of the whole-network kernel on a multiprocessor: 128 registers each fill it.
constexpr int kMostThreads = 512;

// Shared memory of the whole-network kernel begins with a chunk of zeros and two operations.
constexpr int64_t kSharedHead = 16 + 2 * sizeof(OpPlan);
static_assert(kSharedHead % 16 == 0, "activations are aligned");

}  // namespace rlal::cuda
