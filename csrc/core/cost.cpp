#include "core/cost.h"

#include <algorithm>

namespace rlal {

CostModel::CostModel(std::vector<LayerCost> layers, std::vector<int64_t> full_widths)
    : layers_(std::move(layers)), full_(std::move(full_widths)) {}

int64_t CostModel::macs(const int64_t* widths) const {
  int64_t sum = 0;
  for (const LayerCost& layer : layers_)
    sum += layer.area * layer.out.of(widths) * layer.in.of(widths);
  return sum;
}

void CostModel::bounds(const int64_t* widths, int64_t group, const int64_t* min_widths,
                       int64_t round_to, int64_t budget, int64_t* low, int64_t* high) const {
  // Allowed widths, ascending: the multiples of round_to from the minimum on, and the full width.
  const int64_t first = min_widths[group], full = full_[group];
  const int64_t count = (full - first + round_to - 1) / round_to + 1;
  const auto allowed = [&](int64_t k) { return std::min(first + k * round_to, full); };

  std::vector<int64_t> candidate(widths, widths + groups());
  const auto macs_at = [&](int64_t k) {
    candidate[group] = allowed(k);
    return macs(candidate.data());
  };

  // MACs grow with every width, so both ends are found by bisection.
  std::copy(min_widths + group + 1, min_widths + groups(), candidate.begin() + group + 1);
  int64_t fits = 0,
          above = count;  // allowed(0) is kept even if nothing fits: the caller checked reach
  while (above - fits > 1) {
    const int64_t middle = (fits + above) / 2;
    (macs_at(middle) <= budget ? fits : above) = middle;
  }
  std::copy(full_.begin() + group + 1, full_.end(), candidate.begin() + group + 1);
  int64_t below = -1, enough = count - 1;  // nothing suffices: no lower bound but the full width
  while (enough - below > 1) {
    const int64_t middle = (enough + below) / 2;
    (macs_at(middle) >= budget ? enough : below) = middle;
  }
  *high = allowed(fits);
  *low = std::min(allowed(enough), *high);
}

}  // namespace rlal
