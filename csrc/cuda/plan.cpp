#include "cuda/plan.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

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

// Bytes of a block of memory that are taken, for as long as operations read them.
class Arena {
 public:
  explicit Arena(int64_t start) : start_(start), end_(start) {}

  int64_t take(int64_t bytes, int last_use) {
    std::sort(taken_.begin(), taken_.end(),
              [](const Range& a, const Range& b) { return a.offset < b.offset; });
    int64_t offset = start_;
    for (const Range& range : taken_) {
      if (offset + bytes <= range.offset) break;
      offset = std::max(offset, range.offset + range.bytes);
    }
    taken_.push_back({offset, bytes, last_use});
    end_ = std::max(end_, offset + bytes);
    return offset;
  }

  // The place at `offset` is used until `last_use` instead.
  void keep(int64_t offset, int last_use) {
    for (Range& range : taken_)
      if (range.offset == offset) range.last_use = last_use;
  }

  void release(int before) {
    taken_.erase(std::remove_if(taken_.begin(), taken_.end(),
                                [&](const Range& range) { return range.last_use < before; }),
                 taken_.end());
  }

  int64_t end() const { return end_; }

 private:
  struct Range {
    int64_t offset, bytes;
    int last_use;
  };
  int64_t start_, end_;
  std::vector<Range> taken_;
};

// One sub-network: tensors placed, operations filled in but for where weights and lists lie.
SubnetPlan place(const Network& network, const std::vector<int>& channels, Precision precision,
                 bool whole) {
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
  Arena arena(0);
  tensors[0].offset = whole ? arena.take(tensors[0].image_bytes, last_use[0]) : kImages;
  SubnetPlan plan;
  for (int i = 0; i < ops; ++i) {
    const OpSpec& spec = network.ops[i];
    arena.release(i);
    TensorPlan& out = tensors[spec.output];
    const bool last = i == ops - 1;
    if (last) out.image_bytes = rounded_up(static_cast<int64_t>(out.channels) * 4, 16);
    // Every output is written by the thread that has read the residual there, so one place does.
    const bool in_place = !last && spec.residual >= 0 && spec.residual != spec.input &&
                          last_use[spec.residual] == i && tensors[spec.residual].offset >= 0;
    if (in_place) {
      out.offset = tensors[spec.residual].offset;
      arena.keep(out.offset, last_use[spec.output]);
    } else {
      out.offset = arena.take(out.image_bytes, last ? ops : last_use[spec.output]);
    }
    OpPlan op = plan_op(spec, tensors[spec.input], out, precision);
    op.logits = last;
    op.residual = spec.residual < 0 ? kNone : tensors[spec.residual].offset;
    plan.ops.push_back(op);
  }
  plan.image_bytes = arena.end();
  plan.whole = whole;
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

FullWeights full_weights(const Network& network) {
  FullWeights full;
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
  pack.tensor_cores = precision != Precision::fp32;
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

Plan make_plan(const Network& network, const FullWeights& full, Precision precision, Path path,
               const SharedMemory& shared, const uint8_t* masks, int64_t subnets, int classes) {
  check(network);
  const size_t ops = network.ops.size(), tensors = network.tensors.size();
  Plan plan;
  plan.precision = precision;
  plan.outputs = network.channels(network.ops.back().output);
  std::vector<OpPlan> all_ops;
  std::vector<PackPlan> all_packs;
  std::vector<int32_t> whole;
  std::vector<unsigned char> lists;
  int64_t most_whole = 0;
  for (const TensorSpec& tensor : network.tensors)
    plan.most_pixels =
        std::max(plan.most_pixels, static_cast<int64_t>(tensor.height) * tensor.width);
  for (int64_t s = 0; s < subnets; ++s) {
    const uint8_t* mask = masks + s * classes;
    std::vector<std::vector<int32_t>> kept(tensors);
    std::vector<int> channels;
    std::vector<int64_t> list_of;
    for (size_t t = 0; t < tensors; ++t) {
      const std::vector<int32_t>& class_of = network.tensors[t].classes;
      for (size_t c = 0; c < class_of.size(); ++c)
        if (mask[class_of[c]]) kept[t].push_back(static_cast<int32_t>(c));
      channels.push_back(static_cast<int>(kept[t].size()));
      list_of.push_back(append(&lists, kept[t]));
    }
    SubnetPlan subnet;
    bool fits = false;
    if (path != Path::layers) {
      subnet = place(network, channels, precision, true);
      fits = subnet.image_bytes + kSharedHead <= shared.block;
    }
    if (path == Path::whole && !fits)
      throw std::invalid_argument("path 'whole' needs " +
                                  std::to_string(subnet.image_bytes + kSharedHead) +
                                  " bytes of shared memory for one image, this device has " +
                                  std::to_string(shared.block) + ": use path 'auto' or 'layers'");
    if (fits) {
      whole.push_back(static_cast<int32_t>(s));
      most_whole = std::max(most_whole, subnet.image_bytes);
    } else {
      subnet = place(network, channels, precision, false);
      plan.layer_image_bytes = std::max(plan.layer_image_bytes, subnet.image_bytes);
    }
    for (size_t i = 0; i < ops; ++i) {
      OpPlan& op = subnet.ops[i];
      const OpSpec& spec = network.ops[i];
      op.weights = plan.packed_bytes;
      plan.packed_bytes += rounded_up(packed_weight_bytes(op, precision), 16);
      op.bias = plan.packed_bytes;
      plan.packed_bytes += rounded_up(packed_bias_bytes(op), 16);
      if (spec.kind == OpKind::select)
        op.sources = append(&lists, sources_of(spec, kept[spec.input], kept[spec.output],
                                               op.out.chunks * chunk_channels(precision)));
      PackPlan pack = plan_packing(spec, op, network.channels(spec.input), precision);
      pack.full_weights = full.weights[i];
      pack.full_bias = full.bias[i];
      pack.kept_in = list_of[spec.input];
      pack.kept_out = list_of[spec.output];
      plan.most_pack_words = std::max(plan.most_pack_words, pack.words);
      all_packs.push_back(pack);
    }
    all_ops.insert(all_ops.end(), subnet.ops.begin(), subnet.ops.end());
    plan.subnets.push_back(std::move(subnet));
  }
  // The lists come last; offsets into them move by what lies before.
  const int64_t ops_bytes = static_cast<int64_t>(all_ops.size() * sizeof(OpPlan));
  plan.pack_plans = rounded_up(ops_bytes, 16);
  plan.whole_subnets =
      rounded_up(plan.pack_plans + static_cast<int64_t>(all_packs.size() * sizeof(PackPlan)), 16);
  const int64_t lists_at =
      rounded_up(plan.whole_subnets + static_cast<int64_t>(whole.size() * sizeof(int32_t)), 16);
  for (OpPlan& op : all_ops) op.sources += lists_at;
  for (SubnetPlan& subnet : plan.subnets)
    for (OpPlan& op : subnet.ops) op.sources += lists_at;
  for (PackPlan& pack : all_packs) {
    pack.kept_in += lists_at;
    pack.kept_out += lists_at;
  }
  append(&plan.descriptors, all_ops);
  append(&plan.descriptors, all_packs);
  append(&plan.descriptors, whole);
  append(&plan.descriptors, lists);
  plan.whole_count = static_cast<int>(whole.size());
  if (plan.whole_count > 0) {
    const int64_t aimed =
        shared.multiprocessor / kBlocksPerMultiprocessor - kReserved - kSharedHead;
    const int64_t images = std::max<int64_t>(1, aimed / std::max<int64_t>(1, most_whole));
    plan.images_per_block = static_cast<int>(std::min<int64_t>(images, kMostImagesPerBlock));
    plan.shared_bytes = most_whole * plan.images_per_block + kSharedHead;
    // With room for two blocks or fewer on a multiprocessor, more threads each.
    const bool few = 3 * (plan.shared_bytes + kReserved) > shared.multiprocessor;
    plan.threads = few ? 256 : 128;
  }
  return plan;
}

}  // namespace rlal::cuda
