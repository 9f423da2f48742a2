#include <string>

#include "bindings.h"

namespace rlal {

Window window_from(const std::vector<int>& v) {
  require(v.size() == 8, "a window is kernel, stride, padding, dilation in both directions");
  return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]};
}

namespace {

OpKind kind_from(const std::string& name) {
  if (name == "conv") return OpKind::conv;
  if (name == "depthwise") return OpKind::depthwise;
  if (name == "max_pool") return OpKind::max_pool;
  if (name == "avg_pool") return OpKind::avg_pool;
  if (name == "affine") return OpKind::affine;
  if (name == "select") return OpKind::select;
  throw std::invalid_argument("unknown operation '" + name + "'");
}

}  // namespace

Network network_from(const std::vector<py::dict>& tensors, const std::vector<py::dict>& ops) {
  Network network;
  for (const py::dict& t : tensors)
    network.tensors.push_back({t["height"].cast<int>(), t["width"].cast<int>(),
                               t["classes"].cast<std::vector<int32_t>>()});
  for (const py::dict& o : ops)
    network.ops.push_back({kind_from(o["kind"].cast<std::string>()), o["input"].cast<int>(),
                           o["output"].cast<int>(), o["residual"].cast<int>(),
                           window_from(o["window"].cast<std::vector<int>>()),
                           o["low"].cast<float>(), o["high"].cast<float>(),
                           o["count_padding"].cast<bool>(), o["pad_before"].cast<int>()});
  return network;
}

}  // namespace rlal
