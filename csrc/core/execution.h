// Carries blocks of images through one sub-network.
#pragma once

#include "core/program.h"

namespace rlal {

class Execution {
 public:
  // All of them must outlive the execution; `arena` is of `layout`.
  Execution(const Program& program, const Layout& layout, const Packed& packed, Arena& arena)
      : program_(program), layout_(layout), packed_(packed), arena_(arena) {}

  // images: one block in the input's layout. Returns the logits, a view into the arena of 1 x 1
  // images. `seconds` [ops], if given, gains the time spent in each operation.
  View run(float* images, double* seconds = nullptr);

  // One operation, of a layout that is stored whole; `raw`: without residual and activation.
  void run_op(int op, float* images, bool raw);

  // What a raw operation lacks, after `affine` on its output.
  void finish_op(int op, float* images, const ChannelAffine& affine);

 private:
  View view(int tensor, float* images) const;
  void run_region(int op, const Region& region, float* images, bool raw = false);
  void run_timed(int op, const Region& region, float* images, double* seconds);
  void run_streamed(const Segment& segment, float* images, double* seconds);
  int streamed_columns(const Segment& segment) const;

  const Program& program_;
  const Layout& layout_;
  const Packed& packed_;
  Arena& arena_;
};

}  // namespace rlal
