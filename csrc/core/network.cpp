#include "core/network.h"

#include <stdexcept>

namespace rlal {

Network checked(Network network, int classes) {
  const int count = static_cast<int>(network.tensors.size());
  if (count == 0 || network.ops.empty())
    throw std::invalid_argument("a program needs tensors and operations");
  for (const TensorSpec& tensor : network.tensors)
    for (const int32_t id : tensor.classes)
      if (id < 0 || id >= classes) throw std::invalid_argument("a channel class is out of range");
  for (const OpSpec& op : network.ops)
    if (op.input < 0 || op.input >= count || op.output <= 0 || op.output >= count ||
        op.residual >= count)
      throw std::invalid_argument("an operation names a tensor that does not exist");
  return network;
}

}  // namespace rlal
