// Batch norms whose statistics are measured for each sub-network.
#pragma once

#include <vector>

#include "core/execution.h"
#include "core/images.h"
#include "core/program.h"

namespace rlal {

// Sends images through sub-networks as one batch. One per thread; it holds the activations of all
// images at once.
class Recalibration {
 public:
  // Both must outlive it.
  Recalibration(const Program& program, const ImageBlocks& images);

  // The sub-network with the statistics of the images in place: while they pass, every batch norm
  // uses their biased variance, afterwards the unbiased one, as in torch.
  Packed pack(const uint8_t* kept_classes);

 private:
  struct Statistics {
    std::vector<double> mean, variance;  // biased, per kept channel
    double unbiased;                     // what a variance is multiplied by to be so
  };
  Statistics measure(const Packed& packed, int tensor) const;

  const Program& program_;
  const ImageBlocks& images_;
  Layout layout_;
  std::vector<Arena> arenas_;  // per block
};

}  // namespace rlal
