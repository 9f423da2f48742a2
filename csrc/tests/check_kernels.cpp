// Checks the kernels of every instruction set that this machine can run against plain loops in
// double precision. Prints a line per instruction set; exits with 1 and a message that names the
// first case that fails.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/evaluate.h"
#include "core/execution.h"
#include "core/images.h"
#include "core/parallel.h"
#include "core/program.h"
#include "cpu/isa.h"
#include "tests/cases.h"
#include "tests/reference.h"

namespace rlal {
namespace {

// Largest error, relative to the largest value that a case computes before the activation. Small
// integers have no rounding errors at all, but in Winograd's transforms and in averages.
constexpr double kDirect = 5e-6, kWinograd = 2e-5;
constexpr int kMoreImages = 3;  // than lanes

const Interrupted kNever = [] { return false; };

enum class Values { integers, reals };

struct Worst {
  double direct = 0, winograd = 0;
};

void require(bool holds, const std::string& message) {
  if (!holds) throw std::runtime_error(message);
}

// The distributions of the standard library differ between its implementations.
std::vector<float> draw(std::mt19937* random, int64_t count, Values values, int most) {
  std::vector<float> drawn(count);
  for (float& value : drawn) {
    const uint32_t bits = (*random)();
    value = values == Values::integers
                ? static_cast<float>(static_cast<int>(bits % (2 * most + 1)) - most)
                : static_cast<float>(bits >> 8) / (1 << 23) - 1;
  }
  return drawn;
}

// A case with numbers, and what comes out of it.
struct Task {
  const Case& made;
  Values values;
  Weights weights;
  std::vector<float> images;
  int64_t image_floats;
  std::vector<Volume> expected;  // per image
  double largest = 0;            // magnitude among them, before the activation

  std::string name() const {
    return made.name + (values == Values::integers ? " (integers)" : " (reals)");
  }
};

Task make_task(const Case& made, Values values, int images) {
  const Network& network = made.network;
  const TensorSpec& input = network.tensors.front();
  Task task{made, values, {}, {}, 0, {}};
  std::mt19937 random(1);  // NOLINT(bugprone-random-generator-seed): the same numbers every time
  for (const OpSpec& op : network.ops) {
    const bool dense = op.kind == OpKind::conv;
    const bool weighted = dense || op.kind == OpKind::depthwise || op.kind == OpKind::affine;
    const int64_t outputs = weighted ? network.channels(op.output) : 0;
    const int64_t inputs = dense ? network.channels(op.input) : 1;
    const int64_t taps = op.window.kernel_h * op.window.kernel_w;
    task.weights.weights.push_back(draw(&random, outputs * inputs * taps, values, 2));
    if (values == Values::reals)  // keeps the values of deep networks at the size of the images'
      for (float& weight : task.weights.weights.back())
        weight *= 1.7F / std::sqrt(static_cast<float>(inputs * taps));
    task.weights.bias.push_back(draw(&random, outputs, values, 8));
  }
  task.image_floats = static_cast<int64_t>(input.classes.size()) * input.height * input.width;
  task.images = draw(&random, images * task.image_floats, values, 4);
  for (int64_t i = 0; i < images; ++i) {
    Expected expected =
        reference(network, task.weights, made.kept, &task.images[i * task.image_floats]);
    task.expected.push_back(std::move(expected.result));
    task.largest = std::max(task.largest, expected.largest);
  }
  return task;
}

Program make_program(const Task& task, const Kernels& kernels) {
  Program program(task.made.network, static_cast<int>(task.made.kept.size()), kernels);
  for (size_t i = 0; i < task.weights.weights.size(); ++i) {
    const std::vector<float>&weights = task.weights.weights[i], &bias = task.weights.bias[i];
    if (!bias.empty())
      program.set_weights(static_cast<int>(i), weights.data(), static_cast<int64_t>(weights.size()),
                          bias.data(), static_cast<int64_t>(bias.size()));
  }
  return program;
}

std::string difference(const Task& task, int64_t image, int c, int y, int x, float found) {
  const auto text = [](auto number) { return std::to_string(number); };
  return "image " + text(image) + ", channel " + text(c) + ", pixel (" + text(y) + ", " + text(x) +
         "): " + text(found) + " instead of " + text(task.expected[image].at(c, y, x)) +
         ", where the largest sum is " + text(task.largest);
}

// Compares the kept channels [count][channels][height][width]; returns the largest relative error.
double compare(const Task& task, const std::vector<float>& found, int64_t count, double bound) {
  const Network& network = task.made.network;
  const std::vector<int32_t>& classes = network.tensors[network.ops.back().output].classes;
  double worst = 0;
  const float* next = found.data();
  for (int64_t image = 0; image < count; ++image) {
    const Volume& expected = task.expected[image];
    for (int c = 0; c < expected.channels; ++c) {
      if (!task.made.kept[classes[c]]) continue;
      for (int y = 0; y < expected.height; ++y)
        for (int x = 0; x < expected.width; ++x, ++next) {
          const double error = std::abs(*next - expected.at(c, y, x)) / std::max(task.largest, 1.0);
          if (!(error <= bound))  // NaN, too
            throw std::runtime_error(difference(task, image, c, y, x, *next));
          worst = std::max(worst, error);
        }
    }
  }
  require(next == found.data() + found.size(), "the number of channels is wrong");
  return worst;
}

// The last tensor of `count` images [count][channels][height][width].
std::vector<float> execute(const Program& program, const Layout& layout, const Packed& packed,
                           const Task& task, int64_t count) {
  const ImageBlocks images(program, task.images.data(), count, 2);
  Arena arena = layout.make_arena();
  const Volume& shape = task.expected.front();
  const int64_t size = static_cast<int64_t>(packed.channels[program.network().ops.back().output]) *
                       shape.height * shape.width;
  std::vector<float> found(count * size);
  for (int64_t b = 0; b < images.blocks(); ++b) {
    const View view = Execution(program, layout, packed, arena).run(images.block(b));
    program.kernels().store_images(view, found.data() + b * program.kernels().lanes * size, size,
                                   images.in_block(b));
  }
  return found;
}

// Run as the evaluator does, and with every tensor stored whole.
void check_task(const Task& task, const Kernels& kernels, int64_t count, Worst* worst) {
  const Program program = make_program(task, kernels);
  const Network& network = program.network();
  const Packed packed = program.pack(task.made.kept.data());
  const int ops = static_cast<int>(network.ops.size());
  bool winograd = false, averages = false;
  for (int i = 0; i < ops; ++i) {
    winograd |= packed.weights[i].winograd;
    averages |= network.ops[i].kind == OpKind::avg_pool;
  }
  const std::vector<Segment>& segments = program.layout().segments();
  const bool streamed = std::any_of(segments.begin(), segments.end(),
                                    [](const Segment& s) { return s.first < s.last; });
  require(packed.weights.back().winograd || !task.made.winograd, "not packed for Winograd");
  require(streamed || !task.made.streamed, "not run row by row");
  const bool exact = task.values == Values::integers && !winograd && !averages;
  const double bound = exact ? 0 : winograd ? kWinograd : kDirect;
  const Layout whole(network, kernels.lanes, Layout::Storage::whole);
  for (const Layout* layout : {&program.layout(), &whole}) {
    const double error =
        compare(task, execute(program, *layout, packed, task, count), count, bound);
    double& largest = winograd ? worst->winograd : worst->direct;
    largest = std::max(largest, error);
  }
}

int64_t best_logit(const Volume& logits) {
  const std::vector<double>& values = logits.values;
  return std::max_element(values.begin(), values.end()) - values.begin();
}

// The evaluator's calls: the same bits with any number of threads, and the labels counted.
void check_calls(const Task& task, const Kernels& kernels) {
  const Program program = make_program(task, kernels);
  const int64_t count = static_cast<int64_t>(task.expected.size());
  const ImageBlocks images(program, task.images.data(), count, 3);
  std::vector<float> one(count * program.outputs()), three(one.size());
  require(logits(program, images, task.made.kept.data(), nullptr, 1, kNever, one.data()),
          "interrupted");
  require(logits(program, images, task.made.kept.data(), nullptr, 3, kNever, three.data()),
          "interrupted");
  compare(task, one, count, kDirect);
  require(one == three, "three threads compute something else than one");
  std::vector<int64_t> labels;
  for (const Volume& expected : task.expected) labels.push_back(best_logit(expected));
  labels.front() = (labels.front() + 1) % program.outputs();
  std::vector<uint8_t> masks = task.made.kept;
  masks.insert(masks.end(), task.made.kept.begin(), task.made.kept.end());
  const auto hits = [&](int64_t first, int64_t end) {
    int64_t correct[2] = {};
    require(count_correct(program, images, {first, end}, labels.data(), masks.data(), 2, nullptr, 3,
                          kNever, correct),
            "interrupted");
    require(correct[0] == correct[1], "the same sub-network has two scores");
    return correct[0];
  };
  require(hits(0, count) == count - 1, std::to_string(hits(0, count)) + " of " +
                                           std::to_string(count) +
                                           " images counted, all but one are right");
  for (int64_t cut = 0; cut <= count; ++cut)
    require(hits(0, cut) == std::max<int64_t>(cut - 1, 0) &&
                hits(cut, count) == count - std::max<int64_t>(cut, 1),
            "a range counts other images than its own, cut at " + std::to_string(cut));
}

// Denormals would cost a hundred times as much as other numbers on some machines.
void check_denormals() {
#if defined(__x86_64__) || defined(__aarch64__)
  volatile float tiny = 1e-40F, sum = 1;
  run_parallel(1, 1, [&](int, int64_t) { sum = tiny + tiny; }, kNever);
  require(sum == 0, "denormals are not flushed to zero on the threads that compute");
#endif
}

// Adds the case to a failure's message.
template <typename Check>
void named(const std::string& name, const Check& check) {
  try {
    check();
  } catch (const std::exception& failure) {
    throw std::runtime_error(name + ": " + failure.what());
  }
}

void check_all() {
  const std::vector<const Kernels*> available = available_kernels();
  int lanes = 0;
  for (const Kernels* kernels : available) lanes = std::max(lanes, kernels->lanes);
  const std::vector<Case> cases = all_cases();
  std::map<const Kernels*, Worst> worst;
  for (size_t i = 0; i < cases.size(); ++i)
    for (const Values values : {Values::integers, Values::reals}) {
      const Task task = make_task(cases[i], values, lanes + kMoreImages);
      for (const Kernels* kernels : available) {
        const int64_t n = kernels->lanes, counts[] = {n + kMoreImages, n - 1, 1, n};
        named(kernels->name + std::string(": ") + task.name(),
              [&] { check_task(task, *kernels, counts[i % 4], &worst[kernels]); });
      }
    }
  const Case mobilenet = mobilenet_case();
  const Task task = make_task(mobilenet, Values::reals, 2 * lanes + kMoreImages);
  for (const Kernels* kernels : available)
    named(kernels->name + std::string(": calls with ") + task.name(),
          [&] { check_calls(task, *kernels); });
  check_denormals();
  for (const Kernels* kernels : available)
    std::printf(
        "%s: %zu cases agree; largest relative error %.1e (bound %.0e), with Winograd %.1e "
        "(%.0e)\n",
        kernels->name, cases.size(), worst[kernels].direct, kDirect, worst[kernels].winograd,
        kWinograd);
}

}  // namespace
}  // namespace rlal

int main() {
  try {
    rlal::check_all();
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "check_kernels: %s\n", failure.what());
    return 1;
  }
  return 0;
}
