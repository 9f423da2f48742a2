#include "cuda/placement.h"

#include <algorithm>

namespace rlal::cuda {

// The largest ones first, each in the lowest gap: "greedy by size" of Pisarchyk and Lee,
// "Efficient Memory Management for Deep Neural Net Inference" (2020).
int64_t place_spans(std::vector<Span>* spans) {
  std::vector<Span*> order, placed;  // placed: by offset
  for (Span& span : *spans) order.push_back(&span);
  std::stable_sort(order.begin(), order.end(),
                   [](const Span* a, const Span* b) { return a->bytes > b->bytes; });
  int64_t end = 0;
  for (Span* span : order) {
    for (const Span* other : placed) {
      if (other->first > span->last || span->first > other->last) continue;
      if (span->offset + span->bytes <= other->offset) break;
      span->offset = std::max(span->offset, other->offset + other->bytes);
    }
    end = std::max(end, span->offset + span->bytes);
    placed.insert(
        std::upper_bound(placed.begin(), placed.end(), span,
                         [](const Span* a, const Span* b) { return a->offset < b->offset; }),
        span);
  }
  return end;
}

}  // namespace rlal::cuda
