// The only place where Python and C++ meet: arrays become plain pointers, the GIL is released, and
// Ctrl-C is answered. Shapes are checked in Python, where the messages are made; here only what
// would crash. One file for the CPU and the module itself, one for CUDA.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <vector>

#include "core/network.h"

namespace rlal {

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;  // no forcecast: a wrong dtype is an error

inline void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

Window window_from(const std::vector<int>& numbers);

// Dictionaries of rlal_fast.kernels.program as a network.
Network network_from(const std::vector<py::dict>& tensors, const std::vector<py::dict>& ops);

// What build_info says of CUDA, and the classes and functions for it, if any was compiled.
void describe_cuda(py::dict* info);
void bind_cuda(py::module_* module);

}  // namespace rlal
