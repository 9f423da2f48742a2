// CUDA: pointers and the stream come in as integers, as torch's data_ptr() and cuda_stream give
// them.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#ifdef RLAL_FAST_CUDA
#include "cuda/evaluate.h"
#include "cuda/masked_conv.h"
#include "cuda/runtime.h"
#endif

namespace rlal {

#ifndef RLAL_FAST_CUDA

void describe_cuda(py::dict* info) { (*info)["cuda"] = false; }
void bind_cuda(py::module_*) {}

#else

namespace {

using namespace cuda;

template <typename T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(address);  // NOLINT(performance-no-int-to-ptr): Python has no other
}

Array<uint8_t> bytes(const std::vector<unsigned char>& data) {
  return Array<uint8_t>(static_cast<py::ssize_t>(data.size()), data.data());
}

// Where a call runs: torch's device index and stream.
struct Place {
  int device;
  Stream stream;
  Place(int device, int64_t stream) : device(device), stream(pointer<void>(stream)) {}
};

// ---- sub-networks ----

struct CudaProgram {
  Network network;
  int classes;
  FullWeights full;

  TensorPlan images(Precision precision) const {
    const TensorSpec& in = network.tensors.front();
    return plan_tensor(static_cast<int>(in.classes.size()), in.height, in.width, precision);
  }
};

std::unique_ptr<CudaProgram> make_program(const std::vector<py::dict>& tensors,
                                          const std::vector<py::dict>& ops, int classes) {
  Network network = checked(network_from(tensors, ops), classes);
  FullWeights full = full_weights(network);
  return std::unique_ptr<CudaProgram>(
      new CudaProgram{std::move(network), classes, std::move(full)});
}

void load(const CudaProgram& program, int64_t from, int64_t count, const std::string& precision,
          int64_t to, int device, int64_t stream) {
  const Precision kind = precision_from(precision);
  const Place place(device, stream);
  const py::gil_scoped_release release;
  const DeviceGuard guard(place.device);
  load_images(pointer<float>(from), count, program.images(kind), kind, pointer<unsigned char>(to),
              place.stream);
}

std::unique_ptr<Plan> plan_subnets(const CudaProgram& program, const Array<uint8_t>& masks,
                                   const std::string& precision, const std::string& path,
                                   int64_t shared_of_multiprocessor, int64_t shared_of_block) {
  require(masks.ndim() == 2 && masks.shape(1) == program.classes,
          "masks must be uint8 [S, classes]");
  const Precision kind = precision_from(precision);
  const Path how = path_from(path);
  const uint8_t* data = masks.data();
  const int64_t count = masks.shape(0);
  const py::gil_scoped_release release;
  return std::make_unique<Plan>(make_plan(program.network, program.full, kind, how,
                                          {shared_of_multiprocessor, shared_of_block}, data, count,
                                          program.classes));
}

void evaluate_plan(const Plan& plan, const std::vector<int64_t>& addresses, int64_t images,
                   int64_t batch, int device, int64_t stream) {
  require(addresses.size() == 8,
          "addresses of descriptors, full, packed, activations, images, labels, correct, logits");
  require(addresses[7] == 0 || plan.subnets.size() == 1, "logits are of one sub-network");
  const Memory memory{pointer<unsigned char>(addresses[0]), pointer<float>(addresses[1]),
                      pointer<unsigned char>(addresses[2]), pointer<unsigned char>(addresses[3]),
                      pointer<unsigned char>(addresses[4])};
  const Scores scores{pointer<int64_t>(addresses[5]), pointer<int32_t>(addresses[6]),
                      pointer<float>(addresses[7]), plan.outputs};
  const Place place(device, stream);
  const py::gil_scoped_release release;
  const DeviceGuard guard(place.device);
  evaluate(plan, memory, images, batch, scores, place.stream);
}

// ---- one convolution ----

std::unique_ptr<MaskedConv> make_masked_conv(const std::vector<int>& window, bool is_depthwise,
                                             float low, float high, int height, int width,
                                             int full_in, int full_out,
                                             const std::vector<int32_t>& kept_in,
                                             const std::vector<int32_t>& kept_out,
                                             const std::string& precision) {
  OpSpec spec{};
  spec.kind = is_depthwise ? OpKind::depthwise : OpKind::conv;
  spec.window = window_from(window);
  spec.low = low;
  spec.high = high;
  return std::make_unique<MaskedConv>(spec, height, width, full_in, full_out, kept_in, kept_out,
                                      precision_from(precision));
}

void run_masked_conv(const MaskedConv& conv, const std::vector<int64_t>& addresses, int64_t images,
                     int device, int64_t stream) {
  require(addresses.size() == 6, "addresses of descriptors, full, x, residual, workspace, out");
  const MaskedConv::Memory memory{
      pointer<unsigned char>(addresses[0]), pointer<float>(addresses[1]),
      pointer<float>(addresses[2]),         pointer<float>(addresses[3]),
      pointer<unsigned char>(addresses[4]), pointer<float>(addresses[5])};
  const Place place(device, stream);
  const py::gil_scoped_release release;
  const DeviceGuard guard(place.device);
  conv.run(memory, images, place.stream);
}

}  // namespace

void describe_cuda(py::dict* info) {
  (*info)["cuda"] = RLAL_FAST_CUDA;  // the toolkit's version, or "emulated"
  (*info)["cuda_architectures"] = RLAL_FAST_CUDA_ARCHITECTURES;
}

void bind_cuda(py::module_* module) {
  py::register_exception<Error>(*module, "CudaError", PyExc_RuntimeError);
  module->def("cuda_emulated", &emulated);
  module->def("cuda_device_count", &device_count);
  module->def("cuda_properties", [](int device) {
    const DeviceProperties found = properties(device);
    py::dict result;
    result["name"] = found.name;
    result["shared_of_multiprocessor"] = found.shared_per_multiprocessor;
    result["shared_of_block"] = found.shared_per_block;
    return result;
  });

  py::class_<CudaProgram>(*module, "CudaProgram")
      .def(py::init(&make_program))
      .def_property_readonly("full_floats", [](const CudaProgram& p) { return p.full.count; })
      .def_property_readonly("weight_offsets", [](const CudaProgram& p) { return p.full.weights; })
      .def_property_readonly("bias_offsets", [](const CudaProgram& p) { return p.full.bias; })
      .def("image_bytes",
           [](const CudaProgram& p, const std::string& precision) {
             return p.images(precision_from(precision)).image_bytes;
           })
      .def("load_images", &load)
      .def("plan", &plan_subnets, py::arg("masks"), py::arg("precision"), py::arg("path"),
           py::arg("shared_of_multiprocessor"), py::arg("shared_of_block"));

  py::class_<Plan>(*module, "CudaPlan")
      .def_property_readonly("descriptors", [](const Plan& p) { return bytes(p.descriptors); })
      .def_readonly("packed_bytes", &Plan::packed_bytes)
      .def_readonly("whole_count", &Plan::whole_count)
      .def_readonly("images_per_block", &Plan::images_per_block)
      .def_readonly("threads", &Plan::threads)
      .def_readonly("shared_bytes", &Plan::shared_bytes)
      .def_readonly("outputs", &Plan::outputs)
      .def("batch", &batch_for, py::arg("images"), py::arg("bytes"))
      .def("activation_bytes", &activation_bytes, py::arg("batch"))
      .def("evaluate", &evaluate_plan, py::arg("addresses"), py::arg("images"), py::arg("batch"),
           py::arg("device"), py::arg("stream"));

  py::class_<MaskedConv>(*module, "CudaMaskedConv")
      .def(py::init(&make_masked_conv))
      .def_property_readonly("descriptors",
                             [](const MaskedConv& c) { return bytes(c.descriptors()); })
      .def_property_readonly("out_shape",
                             [](const MaskedConv& c) {
                               return py::make_tuple(c.out().channels, c.out().height,
                                                     c.out().width);
                             })
      .def("workspace_bytes", &MaskedConv::workspace_bytes)
      .def("run", &run_masked_conv, py::arg("addresses"), py::arg("images"), py::arg("device"),
           py::arg("stream"));
}

#endif

}  // namespace rlal
