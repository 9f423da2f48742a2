// The fused convolution alone, on ordinary [N, C, H, W] tensors of a GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/plan.h"
#include "cuda/runtime.h"

namespace rlal::cuda {

class MaskedConv {
 public:
  // `spec` gives kind (conv or depthwise), window and clamp.
  MaskedConv(const OpSpec& spec, int height, int width, int full_in, int full_out,
             const std::vector<int32_t>& kept_in, const std::vector<int32_t>& kept_out,
             Precision precision);

  // The caller copies these to the device.
  const std::vector<unsigned char>& descriptors() const { return descriptors_; }
  const TensorPlan& out() const { return op_.out; }
  // Workspace for this many images at most; more are done in turns.
  int64_t workspace_bytes(int64_t images) const;

  struct Memory {
    const unsigned char* descriptors;
    const float* full;      // weights [full_out][full_in][kernel_h][kernel_w], then bias [full_out]
    const float* x;         // [images][kept_in][height][width]
    const float* residual;  // shaped like out, or null
    unsigned char* workspace;
    float* out;  // [images][kept_out][out height][out width]
  };
  void run(const Memory& memory, int64_t images, Stream stream) const;

 private:
  int64_t batch(int64_t images) const;

  Precision precision_;
  OpPlan op_;
  PackPlan pack_;
  int64_t packed_bytes_;
  std::vector<unsigned char> descriptors_;
};

}  // namespace rlal::cuda
