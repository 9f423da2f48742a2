// Where Python and C++ meet (see bindings.h): the CPU's part, and the module itself.
#include "bindings.h"

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/cost.h"
#include "core/evaluate.h"
#include "core/images.h"
#include "core/masked_conv.h"
#include "core/program.h"
#include "cpu/isa.h"

namespace rlal {
namespace {

bool python_interrupted() {
  const py::gil_scoped_acquire acquire;
  return PyErr_CheckSignals() != 0;
}

// Runs `work(interrupted)` without the GIL; raises KeyboardInterrupt (or what a signal handler
// raised).
template <typename Work>
void without_gil(const Work& work) {
  bool finished = false;
  {
    const py::gil_scoped_release release;
    finished = work(Interrupted(python_interrupted));
  }
  if (!finished) throw py::error_already_set();
}

// ---- FLOPs accounting ----

using Terms = std::vector<std::tuple<int32_t, int64_t>>;
using LayerRow = std::tuple<int64_t, int64_t, Terms, int64_t, Terms>;

ChannelCount channel_count(int64_t constant, const Terms& terms) {
  ChannelCount count{constant, {}};
  for (const auto& [group, times] : terms) count.terms.push_back({group, times});
  return count;
}

CostModel make_cost_model(const std::vector<LayerRow>& rows, const Array<int64_t>& full_widths) {
  std::vector<LayerCost> layers;
  for (const auto& [area, out_constant, out_terms, in_constant, in_terms] : rows)
    layers.push_back(
        {area, channel_count(out_constant, out_terms), channel_count(in_constant, in_terms)});
  const std::vector<int64_t> widths(full_widths.data(), full_widths.data() + full_widths.size());
  for (const LayerCost& layer : layers)
    for (const ChannelCount* count : {&layer.out, &layer.in})
      for (const ChannelCount::Term& term : count->terms)
        require(term.group >= 0 && term.group < static_cast<int64_t>(widths.size()),
                "a cost names an unknown group");
  return CostModel(std::move(layers), widths);
}

Array<int64_t> count(const CostModel& model, const Array<int64_t>& widths) {
  require(widths.ndim() == 2 && widths.shape(1) == model.groups(),
          "widths must be int64 [S, groups]");
  Array<int64_t> macs(widths.shape(0));
  const int64_t* in = widths.data();
  int64_t* out = macs.mutable_data();
  const int64_t rows = widths.shape(0);
  const py::gil_scoped_release release;
  for (int64_t row = 0; row < rows; ++row) out[row] = model.macs(in + row * model.groups());
  return macs;
}

py::tuple bounds(const CostModel& model, const Array<int64_t>& widths, int64_t group,
                 const Array<int64_t>& min_widths, int64_t round_to, int64_t budget) {
  require(widths.ndim() == 2 && widths.shape(1) == model.groups(),
          "widths must be int64 [P, groups]");
  require(
      min_widths.size() == model.groups() && group >= 0 && group < model.groups() && round_to > 0,
      "group, min_widths or round_to out of range");
  Array<int64_t> low(widths.shape(0)), high(widths.shape(0));
  for (py::ssize_t row = 0; row < widths.shape(0); ++row)
    model.bounds(widths.data(row), group, min_widths.data(), round_to, budget,
                 low.mutable_data(row), high.mutable_data(row));
  return py::make_tuple(low, high);
}

// ---- evaluation ----

std::shared_ptr<Program> make_program(const std::vector<py::dict>& tensors,
                                      const std::vector<py::dict>& ops, int classes) {
  return std::make_shared<Program>(network_from(tensors, ops), classes, kernels());
}

void set_weights(Program& program, int op, const Array<float>& weights, const Array<float>& bias,
                 const py::object& scale, int threads) {
  Array<double> factors;
  if (!scale.is_none()) {
    factors = scale.cast<Array<double>>();
    require(factors.size() == bias.size(), "one scale per output channel");
  }
  const double* factor = scale.is_none() ? nullptr : factors.data();
  const py::gil_scoped_release release;
  program.set_weights(op, weights.data(), weights.size(), bias.data(), bias.size(), factor,
                      threads);
}

// Images keep their program alive: their layout is its own.
struct Images {
  std::shared_ptr<Program> program;
  ImageBlocks blocks;
};

std::shared_ptr<Images> make_images(const std::shared_ptr<Program>& program,
                                    const Array<float>& images, int threads) {
  const TensorSpec& in = program->input();
  require(images.ndim() == 4 && images.shape(1) == static_cast<py::ssize_t>(in.classes.size()) &&
              images.shape(2) == in.height && images.shape(3) == in.width,
          "images must be float32 [N, C, H, W] of the traced size");
  const py::gil_scoped_release release;
  return std::shared_ptr<Images>(
      new Images{program, ImageBlocks(*program, images.data(), images.shape(0), threads)});
}

void check_masks(const Program& program, const Array<uint8_t>& masks) {
  require(masks.ndim() == 2 && masks.shape(1) == program.classes(),
          "masks must be uint8 [S, classes]");
}

const ImageBlocks* recalibration_of(const Images& images, const std::shared_ptr<Images>& other) {
  if (other == nullptr) return nullptr;
  require(other->program == images.program, "the recalibration images are of another program");
  require(other->blocks.count() > 0, "a recalibration needs images");
  return &other->blocks;
}

Array<int64_t> correct(const Images& images, const Array<int64_t>& labels,
                       const Array<uint8_t>& masks, int threads,
                       const std::shared_ptr<Images>& recalibration, int64_t first,
                       std::optional<int64_t> end) {
  check_masks(*images.program, masks);
  const ImageBlocks* sent_first = recalibration_of(images, recalibration);
  require(labels.size() == images.blocks.count(), "one label per image");
  const ImageRange range{first, end.value_or(images.blocks.count())};
  require(0 <= range.first && range.first <= range.end && range.end <= images.blocks.count(),
          "first and end must be a range of the images");
  Array<int64_t> counts(masks.shape(0));
  int64_t* out = counts.mutable_data();
  without_gil([&](const Interrupted& interrupted) {
    return count_correct(*images.program, images.blocks, range, labels.data(), masks.data(),
                         masks.shape(0), sent_first, threads, interrupted, out);
  });
  return counts;
}

Array<float> all_logits(const Images& images, const Array<uint8_t>& masks, int threads,
                        const std::shared_ptr<Images>& recalibration) {
  check_masks(*images.program, masks);
  const ImageBlocks* sent_first = recalibration_of(images, recalibration);
  require(masks.shape(0) == 1, "logits are of one sub-network");
  Array<float> result({static_cast<py::ssize_t>(images.blocks.count()),
                       static_cast<py::ssize_t>(images.program->outputs())});
  float* out = result.mutable_data();
  without_gil([&](const Interrupted& interrupted) {
    return logits(*images.program, images.blocks, masks.data(), sent_first, threads, interrupted,
                  out);
  });
  return result;
}

std::vector<double> profiled(const Images& images, const Array<uint8_t>& masks) {
  check_masks(*images.program, masks);
  require(masks.shape(0) == 1, "a profile is of one sub-network");
  const py::gil_scoped_release release;
  return profile(*images.program, images.blocks, masks.data());
}

Array<float> masked_conv(const Array<float>& x, const Array<float>& weight,
                         const Array<float>& bias, const Array<int64_t>& kept_in,
                         const Array<int64_t>& kept_out, const std::vector<int>& window,
                         bool is_depthwise, const py::object& residual, float low, float high,
                         int threads) {
  require(x.ndim() == 4 && weight.ndim() == 4, "x and weight must be float32 with four axes");
  MaskedConv conv;
  conv.window = window_from(window);
  conv.depthwise = is_depthwise;
  conv.low = low;
  conv.high = high;
  conv.images = x.shape(0);
  conv.height = static_cast<int>(x.shape(2));
  conv.width = static_cast<int>(x.shape(3));
  conv.x = x.data();
  conv.weight = weight.data();
  conv.full_in = is_depthwise ? 1 : static_cast<int>(weight.shape(1));
  conv.bias = bias.data();
  conv.kept_in.assign(kept_in.data(), kept_in.data() + kept_in.size());
  conv.kept_out.assign(kept_out.data(), kept_out.data() + kept_out.size());
  require(bias.size() == weight.shape(0), "one bias per full output channel");
  require(x.shape(1) == static_cast<py::ssize_t>(conv.kept_in.size()),
          "x has one channel per kept input");
  for (const int c : conv.kept_out) require(c >= 0 && c < weight.shape(0), "kept_out out of range");
  for (const int c : conv.kept_in)
    require(c >= 0 && (is_depthwise || c < weight.shape(1)), "kept_in out of range");
  Array<float> result({x.shape(0), static_cast<py::ssize_t>(conv.kept_out.size()),
                       static_cast<py::ssize_t>(conv.out_height()),
                       static_cast<py::ssize_t>(conv.out_width())});
  Array<float> added;
  if (!residual.is_none()) {
    added = residual.cast<Array<float>>();
    require(added.size() == result.size(), "residual must have the shape of the result");
    conv.residual = added.data();
  }
  float* out = result.mutable_data();
  without_gil([&](const Interrupted& interrupted) {
    return run_masked_conv(kernels(), conv, threads, interrupted, out);
  });
  return result;
}

py::dict build_info() {
  std::vector<std::string> isas;
  for (const Kernels* k : available_kernels()) isas.emplace_back(k->name);
  py::dict info;
  info["version"] = RLAL_FAST_VERSION;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["isas"] = isas;
  info["isa"] = kernels().name;
  describe_cuda(&info);
  return info;
}

}  // namespace
}  // namespace rlal

PYBIND11_MODULE(_rlal_fast, module) {
  using namespace rlal;
  module.doc() = "Native part of rlal_fast; use it through the rlal_fast package.";
  module.def("version", [] { return RLAL_FAST_VERSION; });
  module.def("build_info", &build_info);
  module.def("masked_conv2d", &masked_conv);
  module.def("fma_peak", [] {
    const py::gil_scoped_release release;
    return fma_peak(kernels());
  });

  py::class_<CostModel>(module, "CostModel")
      .def(py::init(&make_cost_model))
      .def("count", &count)
      .def("bounds", &bounds);

  py::class_<Program, std::shared_ptr<Program>>(module, "Program")
      .def(py::init(&make_program))
      .def_property_readonly("isa", [](const Program& p) { return p.kernels().name; })
      .def("set_weights", &set_weights, py::arg("op"), py::arg("weights"), py::arg("bias"),
           py::arg("scale") = py::none(), py::arg("threads") = 1)
      .def("set_norm",
           [](Program& p, int op, const Array<float>& weight, const Array<float>& bias, float eps) {
             p.set_norm(op, {{weight.data(), weight.data() + weight.size()},
                             {bias.data(), bias.data() + bias.size()},
                             eps});
           });

  py::class_<Images, std::shared_ptr<Images>>(module, "Images")
      .def(py::init(&make_images))
      .def("correct", &correct, py::arg("labels"), py::arg("masks"), py::arg("threads"),
           py::arg("recalibration") = nullptr, py::arg("first") = 0, py::arg("end") = py::none())
      .def("logits", &all_logits, py::arg("masks"), py::arg("threads"),
           py::arg("recalibration") = nullptr)
      .def("profile", &profiled);

  bind_cuda(&module);
}
