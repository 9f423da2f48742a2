// A whole network as a list of fused operations, and what one sub-network of it needs to run.
//
// The program is built once per network. Weights move with set_weights, without a rebuild. A
// sub-network is a mask over channel classes: pack() gathers its compact weights, run() carries one
// block of images through all of it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/kernels.h"

namespace rlal {

enum class OpKind { conv, depthwise, max_pool, avg_pool, affine, select };

struct TensorSpec {
  int height, width, border;     // border: zero pixels on every side
  std::vector<int32_t> classes;  // channel class of each channel
};

struct OpSpec {
  OpKind kind;
  int input, output, residual;  // tensors; residual -1: none
  Window window;
  float low, high;
  bool count_padding;
  int pad_before;  // select: zero channels before the input's (in full channels)
};

// A 64-byte aligned float buffer that starts zeroed.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t floats);
  float* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(float* p) const;
  };
  std::unique_ptr<float, Free> data_;
  int64_t size_ = 0;
};

// The compact weights and channel counts of one sub-network.
struct Packed {
  std::vector<int> channels;                  // per tensor
  std::vector<bool> winograd;                 // per op: computed so
  std::vector<std::vector<float>> weights;    // per op
  std::vector<std::vector<float>> bias;       // per op
  std::vector<std::vector<int32_t>> sources;  // per op, select only
};

// Activations of one thread. Slots are shared by tensors of one geometry whose lives do not
// overlap; only interiors are ever written, so the zero borders stay zero.
struct Arena {
  std::vector<Buffer> slots;
  Buffer scratch;
};

class Program {
 public:
  // Tensor 0 holds the images, the last op writes the logits. Throws std::invalid_argument.
  Program(std::vector<TensorSpec> tensors, std::vector<OpSpec> ops, int classes,
          const Kernels& kernels);

  const Kernels& kernels() const { return kernels_; }
  const TensorSpec& input() const { return tensors_.front(); }
  int outputs() const { return static_cast<int>(tensors_[ops_.back().output].classes.size()); }
  int classes() const { return classes_; }

  // Full weights: conv [out][in][kh][kw], depthwise [c][kh][kw], affine [c]; bias [out].
  void set_weights(int op, const float* weights, int64_t weight_count, const float* bias,
                   int64_t bias_count);

  Packed pack(const uint8_t* kept_classes) const;
  Arena make_arena() const;

  // images: one block in the input's layout. Returns the logits, a view into the arena of 1 x 1
  // images.
  View run(const Packed& packed, Arena& arena, float* images) const;

  int64_t block_floats() const;  // floats of one block of images
  View view(int tensor, float* base,
            int channels) const;  // base: start of the buffer, border included

 private:
  struct Slot {
    int height, width, border, channels;
  };
  void assign_slots();
  int64_t weight_size(int op) const;
  std::vector<int> kept_of(int tensor, const uint8_t* kept_classes) const;
  void pack_conv(int op, const std::vector<int>& out, const std::vector<int>& in,
                 Packed* packed) const;
  void pack_op(int op, const std::vector<std::vector<int>>& kept, Packed* packed) const;

  std::vector<TensorSpec> tensors_;
  std::vector<OpSpec> ops_;
  int classes_;
  const Kernels& kernels_;
  std::vector<int> slot_of_;  // per tensor, -1 for the images
  std::vector<Slot> slots_;
  std::vector<std::vector<float>> weights_, bias_;  // per op, full
  std::vector<std::vector<float>> winograd_;        // per op, full, [36][out][in]; empty: not so
};

}  // namespace rlal
