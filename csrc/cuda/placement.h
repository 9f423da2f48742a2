// Places in one block of memory for what is there at different times.
#pragma once

#include <cstdint>
#include <vector>

namespace rlal::cuda {

// Something in memory from operation `first` to operation `last`, both included.
struct Span {
  int64_t bytes;
  int first, last;
  int64_t offset = 0;
};

// Gives every span a place, none at the same time in the place of another; returns the bytes in
// all.
int64_t place_spans(std::vector<Span>* spans);

}  // namespace rlal::cuda
