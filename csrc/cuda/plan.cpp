#include "cuda/plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "cuda/placement.h"

namespace rlal::cuda {
namespace {

constexpr int kTile = 8;  // outputs of one product
constexpr int64_t kFragmentBytes = 256;
constexpr int kMostImagesPerBlock = 8;
constexpr int64_t kBlocksPerMultiprocessor = 4;
constexpr int64_t kReserved = 1 << 10;  // shared memory that the system takes for each block

int64_t rounded_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

int chunk_channels(Precision precision) { return 16 / stored_bytes(precision); }

int64_t taps(const OpPlan& op) {
  return op.kind == OpKind::affine ? 1
                                   : static_cast<int64_t>(op.window.kernel_h) * op.window.kernel_w;
}

bool has_weights(OpKind kind) {
  return kind == OpKind::conv || kind == OpKind::depthwise || kind == OpKind::affine;
}

// One sub-network: tensors placed, operations filled in but for where weights and lists lie.
enum class Purpose { whole, layers, recalibration };

SubnetPlan place(const Network& network, const std::vector<int>& channels, Precision precision,
                 Purpose purpose) {
  const bool whole = purpose == Purpose::whole, measured = purpose == Purpose::recalibration;
  const int ops = static_cast<int>(network.ops.size());
  std::vector<int> last_use(network.tensors.size(), -1);
  for (int i = 0; i < ops; ++i) {
    last_use[network.ops[i].input] = i;
    if (network.ops[i].residual >= 0) last_use[network.ops[i].residual] = i;
  }
  std::vector<TensorPlan> tensors;
  for (size_t t = 0; t < network.tensors.size(); ++t)
    tensors.push_back(
        plan_tensor(channels[t], network.tensors[t].height, network.tensors[t].width, precision));
  std::vector<Span> spans;
  std::vector<int> span_of(tensors.size(), -1);
  if (whole) {
    span_of[0] = 0;
    spans.push_back({tensors[0].image_bytes, -1, last_use[0]});
  }
  for (int i = 0; i < ops; ++i) {
    const OpSpec& spec = network.ops[i];
    TensorPlan& out = tensors[spec.output];
    const bool logits = i == ops - 1 && !measured;
    if (logits) out.image_bytes = rounded_up(static_cast<int64_t>(out.channels) * 4, 16);
    const int last = i == ops - 1 ? ops : std::max(i, last_use[spec.output]);
    // Every output is written by the thread that has read the residual there, so one place does.
    const bool in_place = i < ops - 1 && !measured && spec.residual >= 0 &&
                          spec.residual != spec.input && last_use[spec.residual] == i &&
                          span_of[spec.residual] >= 0;
    if (in_place) {
      span_of[spec.output] = span_of[spec.residual];
      spans[span_of[spec.output]].last = last;
    } else {
      span_of[spec.output] = static_cast<int>(spans.size());
      spans.push_back({out.image_bytes, i, last});
    }
  }
  SubnetPlan plan;
  plan.image_bytes = place_spans(&spans);
  plan.whole = whole;
  for (size_t t = 0; t < tensors.size(); ++t)
    tensors[t].offset = span_of[t] < 0 ? kImages : spans[span_of[t]].offset;
  for (int i = 0; i < ops; ++i) {
    const OpSpec& spec = network.ops[i];
    OpPlan op = plan_op(spec, tensors[spec.input], tensors[spec.output], precision);
    op.logits = i == ops - 1 && !measured;
    op.residual = spec.residual < 0 ? kNone : tensors[spec.residual].offset;
    plan.ops.push_back(op);
  }
  return plan;
}

// Appends to the descriptors, each item at a multiple of 16 bytes.
template <typename T>
int64_t append(std::vector<unsigned char>* to, const std::vector<T>& items) {
  const int64_t offset = rounded_up(static_cast<int64_t>(to->size()), 16);
  to->resize(offset + items.size() * sizeof(T));
  if (!items.empty()) std::memcpy(to->data() + offset, items.data(), items.size() * sizeof(T));
  return offset;
}

std::vector<int32_t> sources_of(const OpSpec& op, const std::vector<int32_t>& in,
                                const std::vector<int32_t>& out, int padded) {
  std::vector<int32_t> sources(padded, -1);
  for (size_t i = 0; i < out.size(); ++i) {
    const auto place = std::lower_bound(in.begin(), in.end(), out[i] - op.pad_before);
    if (place != in.end() && *place == out[i] - op.pad_before)
      sources[i] = static_cast<int32_t>(place - in.begin());
  }
  return sources;
}

void check(const Network& network) {
  const TensorSpec& last = network.tensors[network.ops.back().output];
  if (last.height != 1 || last.width != 1)
    throw std::invalid_argument("the last operation must give one value per channel");
}

}  // namespace

Precision precision_from(const std::string& name) {
  if (name == "fp32") return Precision::fp32;
  if (name == "tf32") return Precision::tf32;
  if (name == "fp16") return Precision::fp16;
  if (name == "bf16") return Precision::bf16;
  throw std::invalid_argument("unknown precision '" + name + "'");
}

Path path_from(const std::string& name) {
  if (name == "auto") return Path::automatic;
  if (name == "whole") return Path::whole;
  if (name == "layers") return Path::layers;
  throw std::invalid_argument("unknown path '" + name + "'");
}

int stored_bytes(Precision precision) {
  return precision == Precision::fp16 || precision == Precision::bf16 ? 2 : 4;
}

Divisor divisor(int by) {
  uint32_t log = 0;  // rounded up
  while ((int64_t{1} << log) < by) ++log;
  const uint64_t power = uint64_t{1} << (31 + log);
  return {static_cast<uint32_t>((power + by - 1) / by), 31 + log};
}

FullWeights full_weights(const Network& network, const std::vector<float>& norm_eps) {
  if (!norm_eps.empty() && norm_eps.size() != network.ops.size())
    throw std::invalid_argument("one epsilon for each operation");
  FullWeights full;
  full.norm.assign(network.ops.size(), -1);
  full.eps = norm_eps;
  for (const OpSpec& op : network.ops) {
    if (!has_weights(op.kind)) {
      full.weights.push_back(-1);
      full.bias.push_back(-1);
      continue;
    }
    const int64_t outputs = network.channels(op.output);
    const int64_t inputs = op.kind == OpKind::conv ? network.channels(op.input) : 1;
    const int64_t area = op.kind == OpKind::affine
                             ? 1
                             : static_cast<int64_t>(op.window.kernel_h) * op.window.kernel_w;
    full.weights.push_back(full.count);
    full.bias.push_back(full.count + outputs * inputs * area);
    full.count += outputs * inputs * area + outputs;
    const size_t index = full.weights.size() - 1;
    if (norm_eps.empty() || std::isnan(norm_eps[index])) continue;
    full.norm[index] = full.count;
    full.count += 2 * outputs;
  }
  return full;
}

TensorPlan plan_tensor(int channels, int height, int width, Precision precision) {
  const int chunk = chunk_channels(precision);
  TensorPlan tensor{0, 0, channels, (channels + chunk - 1) / chunk, height, width};
  tensor.image_bytes = static_cast<int64_t>(tensor.chunks) * height * width * 16;
  return tensor;
}

OpPlan plan_op(const OpSpec& spec, const TensorPlan& in, const TensorPlan& out,
               Precision precision) {
  OpPlan op{};
  op.kind = spec.kind;
  op.in = in;
  op.out = out;
  op.residual = kNone;
  op.window = spec.window;
  op.low = spec.low;
  op.high = spec.high;
  op.count_padding = spec.count_padding;
  op.by_pixels = divisor(out.height * out.width);
  op.by_width = divisor(out.width);
  if (spec.kind == OpKind::conv) {
    const int64_t chunks = taps(op) * in.chunks;
    op.k_steps = static_cast<int32_t>(precision == Precision::fp32 ? chunks : (chunks + 1) / 2);
    op.n_tiles = (out.channels + kTile - 1) / kTile;
  }
  return op;
}

int64_t packed_weight_bytes(const OpPlan& op, Precision precision) {
  if (op.kind == OpKind::conv)
    return static_cast<int64_t>(op.n_tiles) * op.k_steps *
           (precision == Precision::fp32 ? kFragmentBytes / 2 : kFragmentBytes);
  if (!has_weights(op.kind)) return 0;
  return taps(op) * op.out.chunks * chunk_channels(precision) * 4;
}

int64_t packed_bias_bytes(const OpPlan& op) {
  return has_weights(op.kind) ? rounded_up(op.out.channels, kTile) * 4 : 0;
}

PackPlan plan_packing(const OpSpec& spec, const OpPlan& op, int full_inputs, Precision precision) {
  PackPlan pack{};
  pack.kind = spec.kind;
  pack.chunk = chunk_channels(precision);
  pack.inputs = op.in.channels;
  pack.outputs = op.out.channels;
  pack.taps = static_cast<int32_t>(taps(op));
  pack.full_inputs = full_inputs;
  pack.in_chunks = op.kind == OpKind::conv ? op.in.chunks : op.out.chunks;
  pack.k_steps = op.k_steps;
  pack.n_tiles = op.n_tiles;
  pack.weights = op.weights;
  pack.bias = op.bias;
  pack.words = packed_weight_bytes(op, precision) / 4;
  return pack;
}

namespace {

// Makes the plan of a call, one sub-network after the other.
class Planner {
 public:
  Planner(const Network& network, const FullWeights& full, Precision precision, Path path,
          const SharedMemory& shared)
      : network_(network), full_(full), path_(path), shared_(shared) {
    plan_.precision = precision;
    plan_.outputs = network.channels(network.ops.back().output);
    for (const TensorSpec& tensor : network.tensors)
      plan_.most_pixels =
          std::max(plan_.most_pixels, static_cast<int64_t>(tensor.height) * tensor.width);
  }

  void add(const uint8_t* mask) {
    std::vector<std::vector<int32_t>> kept(network_.tensors.size());
    std::vector<int> channels;
    std::vector<int64_t> list_of;  // per tensor: where its kept channels are listed
    for (size_t t = 0; t < kept.size(); ++t) {
      const std::vector<int32_t>& class_of = network_.tensors[t].classes;
      for (size_t c = 0; c < class_of.size(); ++c)
        if (mask[class_of[c]]) kept[t].push_back(static_cast<int32_t>(c));
      channels.push_back(static_cast<int>(kept[t].size()));
      list_of.push_back(append(&lists_, kept[t]));
    }
    SubnetPlan subnet = placed(channels);
    for (size_t i = 0; i < network_.ops.size(); ++i) {
      const OpSpec& spec = network_.ops[i];
      OpPlan& op = subnet.ops[i];
      take_weights(&op);
      if (spec.kind == OpKind::select)
        op.sources =
            append(&lists_, sources_of(spec, kept[spec.input], kept[spec.output], padded(op)));
      packs_.push_back(packing(i, op, list_of));
      if (!full_.eps.empty()) add_norm(i, list_of, &subnet);
    }
    ops_.insert(ops_.end(), subnet.ops.begin(), subnet.ops.end());
    plan_.subnets.push_back(std::move(subnet));
  }

  Plan finish() {
    describe();
    plan_.whole_count = static_cast<int>(whole_.size());
    if (plan_.whole_count > 0) size_blocks();
    return std::move(plan_);
  }

 private:
  int padded(const OpPlan& op) const { return op.out.chunks * chunk_channels(plan_.precision); }

  // On the path that is asked for, or the one that it fits.
  SubnetPlan placed(const std::vector<int>& channels) {
    SubnetPlan subnet;
    bool fits = false;
    if (path_ != Path::layers) {
      subnet = place(network_, channels, plan_.precision, Purpose::whole);
      fits = subnet.image_bytes + kSharedHead <= shared_.block;
    }
    if (path_ == Path::whole && !fits)
      throw std::invalid_argument("path 'whole' needs " +
                                  std::to_string(subnet.image_bytes + kSharedHead) +
                                  " bytes of shared memory for one image, this device has " +
                                  std::to_string(shared_.block) + ": use path 'auto' or 'layers'");
    if (fits) {
      whole_.push_back(static_cast<int32_t>(plan_.subnets.size()));
      most_whole_ = std::max(most_whole_, subnet.image_bytes);
    } else {
      subnet = place(network_, channels, plan_.precision, Purpose::layers);
      plan_.layer_image_bytes = std::max(plan_.layer_image_bytes, subnet.image_bytes);
    }
    if (!full_.eps.empty()) {
      SubnetPlan measured = place(network_, channels, plan_.precision, Purpose::recalibration);
      subnet.recalibration = std::move(measured.ops);
      plan_.recalibration_image_bytes =
          std::max(plan_.recalibration_image_bytes, measured.image_bytes);
    }
    return subnet;
  }

  void take_weights(OpPlan* op) {
    op->weights = plan_.packed_bytes;
    op->bias = op->weights + rounded_up(packed_weight_bytes(*op, plan_.precision), 16);
    plan_.packed_bytes = op->bias + rounded_up(packed_bias_bytes(*op), 16);
  }

  PackPlan packing(size_t i, const OpPlan& op, const std::vector<int64_t>& list_of) {
    const OpSpec& spec = network_.ops[i];
    PackPlan pack = plan_packing(spec, op, network_.channels(spec.input), plan_.precision);
    pack.full_weights = full_.weights[i];
    pack.full_bias = full_.bias[i];
    pack.kept_in = list_of[spec.input];
    pack.kept_out = list_of[spec.output];
    pack.corrected = -1;
    plan_.most_pack_words = std::max(plan_.most_pack_words, pack.words);
    return pack;
  }

  void add_norm(size_t i, const std::vector<int64_t>& list_of, SubnetPlan* subnet) {
    const OpSpec& spec = network_.ops[i];
    const int64_t channels = padded(subnet->ops[i]);
    const NormPlan norm{full_.norm[i],     network_.channels(spec.output),
                        full_.eps[i],      list_of[spec.output],
                        plan_.corrections, plan_.corrections + 2 * channels};
    subnet->norms.push_back(norm);
    OpPlan& measured = subnet->recalibration[i];
    measured.weights = subnet->ops[i].weights;
    measured.bias = subnet->ops[i].bias;
    measured.sources = subnet->ops[i].sources;
    if (norm.full < 0) return;
    packs_.back().corrected = norm.corrected;
    plan_.corrections += 4 * channels;
    plan_.most_channels = std::max(plan_.most_channels, channels);
  }

  // The lists come last; offsets into them move by what lies before.
  void describe() {
    append(&plan_.descriptors, ops_);
    plan_.pack_plans = append(&plan_.descriptors, packs_);
    plan_.whole_subnets = append(&plan_.descriptors, whole_);
    const int64_t lists = append(&plan_.descriptors, lists_);
    auto* ops = reinterpret_cast<OpPlan*>(plan_.descriptors.data());
    for (size_t i = 0; i < ops_.size(); ++i) ops[i].sources += lists;
    auto* packs = reinterpret_cast<PackPlan*>(plan_.descriptors.data() + plan_.pack_plans);
    for (size_t i = 0; i < packs_.size(); ++i) {
      packs[i].kept_in += lists;
      packs[i].kept_out += lists;
    }
    for (SubnetPlan& subnet : plan_.subnets) {
      for (OpPlan& op : subnet.ops) op.sources += lists;
      for (OpPlan& op : subnet.recalibration) op.sources += lists;
      for (NormPlan& norm : subnet.norms) norm.kept_out += lists;
    }
  }

  // Images and threads of a block of the whole-network kernel: four blocks on a multiprocessor,
  // where the largest sub-network allows it, and as many threads as there are registers for.
  void size_blocks() {
    const int64_t aimed =
        shared_.multiprocessor / kBlocksPerMultiprocessor - kReserved - kSharedHead;
    const int64_t images = std::max<int64_t>(1, aimed / std::max<int64_t>(1, most_whole_));
    plan_.images_per_block = static_cast<int>(std::min<int64_t>(images, kMostImagesPerBlock));
    plan_.shared_bytes = most_whole_ * plan_.images_per_block + kSharedHead;
    const int64_t blocks = shared_.multiprocessor / (plan_.shared_bytes + kReserved);
    const int64_t resident = std::clamp<int64_t>(blocks, 1, kBlocksPerMultiprocessor);
    plan_.threads = static_cast<int>(kMostThreads / resident / 32 * 32);
  }

  const Network& network_;
  const FullWeights& full_;
  Path path_;
  SharedMemory shared_;
  Plan plan_;
  std::vector<OpPlan> ops_;
  std::vector<PackPlan> packs_;
  std::vector<int32_t> whole_;
  std::vector<unsigned char> lists_;
  int64_t most_whole_ = 0;  // bytes of an image
};

}  // namespace

Plan make_plan(const Network& network, const FullWeights& full, Precision precision, Path path,
               const SharedMemory& shared, const uint8_t* masks, int64_t subnets, int classes) {
  check(network);
  Planner planner(network, full, precision, path, shared);
  for (int64_t s = 0; s < subnets; ++s) planner.add(masks + s * classes);
  return planner.finish();
}

}  // namespace rlal::cuda
