// A whole network with its weights, and what one sub-network of it needs to run.
//
// The program is built once per network. Weights move with set_weights, without a rebuild. A
// sub-network is a mask over channel classes: pack() gathers its compact weights, an Execution (see
// execution.h) carries blocks of images through it.
#pragma once

#include <cstdint>
#include <vector>

#include "core/kernels.h"
#include "core/layout.h"
#include "core/network.h"
#include "core/packing.h"

namespace rlal {

// The compact weights and channel counts of one sub-network.
struct Packed {
  std::vector<int> channels;                  // per tensor
  std::vector<PackedConv> weights;            // per op
  std::vector<std::vector<float>> bias;       // per op
  std::vector<std::vector<int32_t>> sources;  // per op, select only
};

// A batch norm whose statistics are measured for each sub-network, and so not folded.
struct Norm {
  std::vector<float> weight, bias;  // [out]
  float eps;
};

class Program {
 public:
  // Throws std::invalid_argument.
  Program(Network network, int classes, const Kernels& kernels);

  const Kernels& kernels() const { return kernels_; }
  const Network& network() const { return network_; }
  const Layout& layout() const { return layout_; }
  const TensorSpec& input() const { return network_.tensors.front(); }
  int outputs() const { return network_.channels(network_.ops.back().output); }
  int classes() const { return classes_; }

  // Full weights: conv [out][in][kh][kw], depthwise [c][kh][kw], affine [c]; bias [out]. The
  // weights are multiplied by scale [out] (null: 1), in double precision.
  void set_weights(int op, const float* weights, int64_t weight_count, const float* bias,
                   int64_t bias_count, const double* scale = nullptr, int threads = 1);

  void set_norm(int op, Norm norm);
  const Norm* norm(int op) const;  // null: none

  // Channels of a tensor that a sub-network keeps.
  std::vector<int> kept(int tensor, const uint8_t* kept_classes) const;

  // `corrections` [ops], if given, are applied to the outputs.
  Packed pack(const uint8_t* kept_classes,
              const std::vector<ChannelAffine>* corrections = nullptr) const;

 private:
  int64_t taps(int op) const;
  int64_t weight_size(int op) const;
  void pack_op(int op, const std::vector<std::vector<int>>& kept, const ChannelAffine& correction,
               Packed* packed) const;

  Network network_;
  int classes_;
  const Kernels& kernels_;
  Layout layout_;
  std::vector<std::vector<float>> weights_, bias_;  // per op, full
  std::vector<std::vector<float>> winograd_;        // per op, full, [36][out][in]; empty: not so
  std::vector<Norm> norms_;                         // per op; empty: none
};

}  // namespace rlal
