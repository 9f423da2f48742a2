#include "tests/cases.h"

#include <iterator>
#include <limits>
#include <random>
#include <utility>

namespace rlal {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kSizes[] = {1, 5, 7, 11, 17, 28, 33};
constexpr int kChannels[] = {1, 5, 7, 11, 17, 64, 200};
constexpr int64_t kMacs = 400'000;  // of one image; the plain loops would take too long with more

struct Activation {
  float low, high;
};
constexpr Activation kNone{-kInfinity, kInfinity}, kRelu{0, kInfinity}, kRelu6{0, 6};
constexpr Activation kActivations[] = {kRelu, kNone, kRelu6};

constexpr Window square(int kernel, int stride, int pad, int dilation = 1) {
  return {kernel, kernel, stride, stride, pad, pad, dilation, dilation};
}

int outputs(int size, int kernel, int stride, int pad, int dilation) {
  const int room = size + 2 * pad - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}
int out_height(const Window& w, int height) {
  return outputs(height, w.kernel_h, w.stride_h, w.pad_h, w.dilation_h);
}
int out_width(const Window& w, int width) {
  return outputs(width, w.kernel_w, w.stride_w, w.pad_w, w.dilation_w);
}

// Each method appends an operation and returns the tensor that it writes.
class Builder {
 public:
  Builder(int channels, int height, int width) { add_tensor(height, width, channels, 0); }

  // `dropped` of the output's channels are not kept, besides the `channels` that are.
  int conv(int input, int channels, const Window& w, Activation a, int dropped = 0) {
    const int output = add_tensor(out_height(w, at(input).height), out_width(w, at(input).width),
                                  channels, dropped);
    return add({OpKind::conv, input, output, -1, w, a.low, a.high, false, 0});
  }
  int conv_onto(int residual, int input, const Window& w, Activation a) {
    const int output = add_like(residual, at(residual).height, at(residual).width);
    return add({OpKind::conv, input, output, residual, w, a.low, a.high, false, 0});
  }
  int depthwise(int input, int residual, const Window& w, Activation a) {
    const int output =
        add_like(input, out_height(w, at(input).height), out_width(w, at(input).width));
    return add({OpKind::depthwise, input, output, residual, w, a.low, a.high, false, 0});
  }
  int pool(OpKind kind, int input, const Window& w, bool count_padding) {
    const int output =
        add_like(input, out_height(w, at(input).height), out_width(w, at(input).width));
    return add({kind, input, output, -1, w, kNone.low, kNone.high, count_padding, 0});
  }
  int affine(int input, int residual, Activation a) {
    const int output = add_like(input, at(input).height, at(input).width);
    return add({OpKind::affine, input, output, residual, square(1, 1, 0), a.low, a.high, false, 0});
  }
  int select(int input, int channels, int stride, int pad_before, int dropped = 0) {
    const Window w = square(1, stride, 0);
    const int output = add_tensor(out_height(w, at(input).height), out_width(w, at(input).width),
                                  channels, dropped);
    return add({OpKind::select, input, output, -1, w, kNone.low, kNone.high, false, pad_before});
  }
  Case build(std::string name) { return {std::move(name), network_, kept_}; }

 private:
  const TensorSpec& at(int tensor) const { return network_.tensors[tensor]; }
  int add(const OpSpec& op) {
    network_.ops.push_back(op);
    return op.output;
  }
  int add_like(int other, int height, int width) {
    network_.tensors.push_back({height, width, std::vector<int32_t>(at(other).classes)});
    return static_cast<int>(network_.tensors.size()) - 1;
  }
  int add_tensor(int height, int width, int channels, int dropped) {
    std::vector<uint8_t> kept(channels, 1);
    for (; dropped > 0; --dropped) kept.insert(kept.begin() + random_() % (kept.size() + 1), 0);
    std::vector<int32_t> classes;
    for (const uint8_t keep : kept) {
      classes.push_back(static_cast<int32_t>(kept_.size()));
      kept_.push_back(keep);
    }
    network_.tensors.push_back({height, width, classes});
    return static_cast<int>(network_.tensors.size()) - 1;
  }

  Network network_;
  std::vector<uint8_t> kept_;
  std::mt19937 random_{1};  // NOLINT(bugprone-random-generator-seed): the same cases every time
};

std::string text(const char* kind, const Window& w) {
  const auto pair = [](int h, int v) { return std::to_string(h) + "x" + std::to_string(v); };
  return std::string(kind) + " " + pair(w.kernel_h, w.kernel_w) + " stride " +
         pair(w.stride_h, w.stride_w) + " pad " + pair(w.pad_h, w.pad_w) + " dilation " +
         pair(w.dilation_h, w.dilation_w);
}

std::string text(int in, int out, int height, int width) {
  return ", " + std::to_string(in) + " -> " + std::to_string(out) + " channels, images " +
         std::to_string(height) + "x" + std::to_string(width);
}

// Whether the output is as large as the strided input, so that a shortcut can be added.
bool same_size(const Window& w, int height, int width) {
  return out_height(w, height) == (height - 1) / w.stride_h + 1 &&
         out_width(w, width) == (width - 1) / w.stride_w + 1;
}

// One convolution; every other one adds a residual where sizes allow, every third drops channels.
Case conv_case(const Window& w, int in, int out, int height, int width, int variant) {
  const Activation activation = kActivations[variant % 3];
  const int dropped = variant % 3 == 1 ? out / 3 + 1 : 0;
  Builder builder(in, height, width);
  std::string name = text("conv", w) + text(in, out, height, width);
  if (variant % 2 == 1 && w.stride_h == w.stride_w && same_size(w, height, width)) {
    name += ", residual";
    builder.conv_onto(builder.select(0, out, w.stride_h, 1, dropped), 0, w, activation);
  } else {
    builder.conv(0, out, w, activation, dropped);
  }
  return builder.build(name + ", variant " + std::to_string(variant % 6));
}

// Every window with every size; the numbers of channels take turns.
void add_convs(std::vector<Case>* cases) {
  const Window windows[] = {
      square(1, 1, 0),          square(1, 2, 0),          square(1, 3, 0),
      square(1, 1, 1),          square(3, 1, 1),          square(3, 1, 0),
      square(3, 2, 1),          square(3, 2, 0),          square(3, 3, 1),
      square(3, 1, 2, 2),       square(3, 2, 3, 3),       square(5, 1, 2),
      square(5, 2, 2),          square(5, 3, 1),          square(7, 2, 3),
      square(3, 1, 7),          square(3, 2, 7),          {1, 1, 1, 1, 3, 2, 1, 1},
      {1, 7, 1, 1, 0, 3, 1, 1}, {3, 2, 2, 1, 1, 0, 1, 2}, {4, 3, 1, 2, 2, 1, 1, 1},
  };
  int turn = 0;
  for (const Window& w : windows)
    for (size_t size = 0; size < std::size(kSizes); ++size, ++turn) {
      const int height = kSizes[size], width = kSizes[(size + turn % 2 * 3) % std::size(kSizes)];
      const int rows = out_height(w, height), columns = out_width(w, width);
      if (rows == 0 || columns == 0) continue;
      const int64_t macs = static_cast<int64_t>(rows) * columns * w.kernel_h * w.kernel_w;
      size_t in = turn * 3 % std::size(kChannels), out = (turn * 5 + 2) % std::size(kChannels);
      while (macs * kChannels[in] * kChannels[out] > kMacs && in + out > 0) --(in > out ? in : out);
      cases->push_back(conv_case(w, kChannels[in], kChannels[out], height, width, turn));
    }
  // More input channels than any instruction set sums in one go, and images that are not whole
  // tiles with many outputs.
  cases->push_back(conv_case(square(1, 1, 0), 200, 64, 7, 5, 0));
  cases->push_back(conv_case(square(1, 1, 0), 530, 7, 5, 7, 1));
  cases->push_back(conv_case(square(1, 2, 0), 1100, 11, 3, 5, 2));
  cases->push_back(conv_case(square(1, 1, 0), 64, 200, 7, 7, 3));
  cases->push_back(conv_case(square(1, 1, 0), 530, 64, 1, 1, 4));
}

void add_winograd(std::vector<Case>* cases) {
  const struct {
    int in, out, height, width, pad;
  } shapes[] = {{7, 7, 28, 28, 1},   {11, 17, 17, 33, 1}, {17, 11, 33, 28, 0}, {64, 5, 12, 16, 1},
                {64, 64, 7, 8, 1},   {5, 64, 8, 15, 2},   {200, 17, 5, 11, 1}, {17, 200, 11, 5, 1},
                {64, 64, 12, 11, 1}, {7, 11, 17, 17, 0},  {11, 7, 28, 7, 1},   {11, 11, 5, 7, 7}};
  int variant = 0;
  for (const auto& s : shapes) {
    cases->push_back(conv_case(square(3, 1, s.pad), s.in, s.out, s.height, s.width, variant++));
    cases->back().winograd = true;
  }
}

void add_depthwise(std::vector<Case>* cases) {
  const Window windows[] = {square(3, 1, 1), square(3, 2, 1), square(3, 1, 0),
                            square(3, 2, 0), square(3, 3, 1), square(3, 1, 2, 2),
                            square(5, 1, 2), square(5, 2, 2), {3, 3, 2, 1, 1, 1, 1, 1},
                            square(1, 1, 0), square(1, 2, 0), square(3, 1, 7)};
  int turn = 0;
  for (const Window& w : windows)
    for (const int height : kSizes) {
      const int width = kSizes[(turn * 3 + 1) % std::size(kSizes)];
      const int channels = kChannels[turn % std::size(kChannels)];
      const Activation activation = kActivations[turn++ % 3];
      if (out_height(w, height) == 0 || out_width(w, width) == 0) continue;
      const bool onto_input = turn % 2 == 1 && w.stride_h == 1 && same_size(w, height, width);
      Builder builder(channels, height, width);
      builder.depthwise(0, onto_input ? 0 : -1, w, activation);
      cases->push_back(builder.build(
          text("depthwise", w) + text(channels, channels, height, width) +
          (onto_input ? ", residual" : "") + ", variant " + std::to_string(turn % 3)));
    }
}

void add_pools(std::vector<Case>* cases) {
  const Window windows[] = {square(2, 2, 0), square(3, 2, 1), square(3, 1, 1), square(5, 3, 2)};
  const struct {
    OpKind kind;
    bool count_padding;
    const char* name;
  } pools[] = {{OpKind::max_pool, false, "max_pool"},
               {OpKind::avg_pool, false, "avg_pool"},
               {OpKind::avg_pool, true, "avg_pool that counts padding,"}};
  for (const Window& w : windows)
    for (const int height : {5, 11, 28})
      for (const auto& pool : pools) {
        Builder builder(7, height, 17);
        builder.pool(pool.kind, 0, w, pool.count_padding);
        cases->push_back(builder.build(text(pool.name, w) + text(7, 7, height, 17)));
      }
}

void add_pixelwise(std::vector<Case>* cases) {
  for (const int size : kSizes) {
    Builder affine(11, size, 7);
    affine.affine(affine.affine(0, -1, kNone), 0, kRelu6);
    cases->push_back(affine.build("affine, the second with residual" + text(11, 11, size, 7)));
    for (const int stride : {1, 2, 3}) {
      Builder select(5, size, 11);
      select.select(select.select(0, 17, stride, 7, 6), 23, 1, 2, 9);
      cases->push_back(select.build("select, stride " + std::to_string(stride) + ", twice" +
                                    text(5, 23, size, 11)));
    }
  }
}

// The residual blocks of a CIFAR ResNet: shortcuts by selection, channels dropped everywhere.
Case resnet_case() {
  Builder builder(3, 15, 13);
  const Window same = square(3, 1, 1);
  int x = builder.conv(0, 13, same, kRelu, 5);
  x = builder.conv_onto(x, builder.conv(x, 11, same, kRelu, 4), same, kRelu);
  const int wide = builder.select(x, 23, 2, 4, 3);
  x = builder.conv_onto(wide, builder.conv(x, 17, square(3, 2, 1), kRelu, 5), same, kRelu);
  builder.conv_onto(x, builder.conv(x, 29, same, kRelu, 1), same, kNone);
  return builder.build("ResNet");
}

// Pairs of convolutions that Winograd computes four rows at a time, one with a residual.
Case pairs_case() {
  Builder builder(5, 23, 21);
  const Window same = square(3, 1, 1);
  int x = builder.conv(0, 19, square(1, 1, 0), kRelu);
  x = builder.conv_onto(x, builder.conv(x, 22, same, kRelu, 3), same, kRelu);
  builder.conv(builder.conv(x, 19, square(3, 1, 2), kRelu, 2), 7, square(3, 1, 0), kNone);
  return builder.build("pairs of 3x3 convolutions");
}

// The first layers of an ImageNet ResNet, and an average pool after a convolution.
Case stem_case() {
  Builder builder(3, 65, 61);
  const int wide = builder.conv(0, 40, square(7, 2, 3), kRelu, 5);
  const int pooled = builder.pool(OpKind::max_pool, wide, square(3, 2, 1), false);
  const int again = builder.conv(pooled, 90, square(1, 1, 0), kRelu, 7);
  builder.pool(OpKind::avg_pool, again, square(2, 2, 0), true);
  return builder.build("ImageNet stem and pools");
}

// Inverted residual blocks. With `head`: pooled, and 10 logits.
Builder mobilenet(bool head) {
  Builder builder(3, 21, 45);
  int x = builder.conv(0, 12, square(3, 2, 1), kRelu6, 3);
  const auto block = [&](int expanded, int channels, int kernel, int stride) {
    const int wide = builder.conv(x, expanded, square(1, 1, 0), kRelu6, expanded / 5);
    const int deep = builder.depthwise(wide, -1, square(kernel, stride, kernel / 2), kRelu6);
    x = channels > 0 ? builder.conv(deep, channels, square(1, 1, 0), kNone, 2)
                     : builder.conv_onto(x, deep, square(1, 1, 0), kNone);
  };
  block(90, 9, 3, 1);
  block(70, 0, 3, 1);
  block(500, 11, 3, 1);  // so wide that its columns are computed in two parts
  block(60, 11, 3, 2);
  block(290, 0, 5, 1);
  if (!head) return builder;
  x = builder.pool(OpKind::avg_pool, x, {6, 12, 1, 1, 0, 0, 1, 1}, false);
  builder.conv(x, 10, square(1, 1, 0), kNone);
  return builder;
}

}  // namespace

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  add_convs(&cases);
  add_winograd(&cases);
  add_depthwise(&cases);
  add_pools(&cases);
  add_pixelwise(&cases);
  cases.push_back(resnet_case());
  for (Case& made : std::vector<Case>{pairs_case(), stem_case(),
                                      mobilenet(false).build("MobileNet without its head")}) {
    made.streamed = true;
    cases.push_back(std::move(made));
  }
  cases.push_back(mobilenet_case());
  return cases;
}

Case mobilenet_case() {
  Case made = mobilenet(true).build("MobileNet");
  made.streamed = true;
  return made;
}

}  // namespace rlal
