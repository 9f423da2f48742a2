// MACs of a network as a function of its widths, and the budget rule (method.md §4), in exact
// integers.
#pragma once

#include <cstdint>
#include <vector>

namespace rlal {

// constant + sum over terms of times * width[group]
struct ChannelCount {
  struct Term {
    int32_t group;
    int64_t times;
  };
  int64_t constant = 0;
  std::vector<Term> terms;

  int64_t of(const int64_t* widths) const {
    int64_t sum = constant;
    for (const Term& term : terms) sum += term.times * widths[term.group];
    return sum;
  }
};

struct LayerCost {
  int64_t area = 0;
  ChannelCount out, in;
};

class CostModel {
 public:
  CostModel(std::vector<LayerCost> layers, std::vector<int64_t> full_widths);

  int64_t groups() const { return static_cast<int64_t>(full_.size()); }
  int64_t macs(const int64_t* widths) const;

  // The widths of `group` that an episode may choose after widths[0..group): the largest allowed
  // one that still fits when all later groups are at their minimum, and the smallest that suffices
  // when they stay full; the budget wins where the two disagree.
  void bounds(const int64_t* widths, int64_t group, const int64_t* min_widths, int64_t round_to,
              int64_t budget, int64_t* low, int64_t* high) const;

 private:
  std::vector<LayerCost> layers_;
  std::vector<int64_t> full_;
};

}  // namespace rlal
