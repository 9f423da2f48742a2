#include "cuda/evaluate.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "cuda/runtime.h"

namespace rlal::cuda {
namespace {

constexpr int kMostStreams = 4;
constexpr int64_t kMostBatch = 1024;
constexpr int64_t kCursorBytes = 16;
constexpr int64_t kMostRows = 1 << 30;  // output pixels of a launch are counted in int

int64_t stream_bytes(const Plan& plan, int64_t batch) {
  return kCursorBytes + plan.layer_image_bytes * batch;
}

// "conv 16x32x32 -> 7x32x32", for messages
std::string described(const OpPlan& op) {
  const auto shape = [](const TensorPlan& t) {
    return std::to_string(t.channels) + "x" + std::to_string(t.height) + "x" +
           std::to_string(t.width);
  };
  const char* const kinds[] = {"conv", "depthwise", "max_pool", "avg_pool", "affine", "select"};
  return std::string(kinds[static_cast<int>(op.kind)]) + " " + shape(op.in) + " -> " +
         shape(op.out);
}

void run_whole(const Plan& plan, const Memory& memory, int64_t images, const Scores& scores,
               Stream stream) {
  NetworkArgs args{};
  args.ops = reinterpret_cast<const OpPlan*>(memory.descriptors);
  args.op_count = static_cast<int32_t>(plan.subnets.front().ops.size());
  args.descriptors = memory.descriptors;
  args.packed = memory.packed;
  args.images = memory.images;
  args.image_count = images;
  args.images_per_block = plan.images_per_block;
  args.scores = scores;
  const TensorPlan& first = plan.subnets.front().ops.front().in;
  args.image_bytes = first.image_bytes;
  constexpr int kMostSubnets = 1 << 15;  // of a grid's second dimension
  for (int from = 0; from < plan.whole_count; from += kMostSubnets) {
    args.subnets = reinterpret_cast<const int32_t*>(memory.descriptors + plan.whole_subnets) + from;
    run_network(args, plan.precision, std::min(plan.whole_count - from, kMostSubnets), plan.threads,
                plan.shared_bytes, stream);
  }
}

// One sub-network: a graph of one batch, launched for all batches but the first, if it is several.
void run_layers(const Plan& plan, int subnet, const Memory& memory, unsigned char* own,
                int64_t images, int64_t batch, const Scores& scores, Stream stream) {
  auto* index = reinterpret_cast<int32_t*>(own);
  const Cursor cursor{index, static_cast<int32_t>(batch), images};
  unsigned char* activations = own + kCursorBytes;
  const std::vector<OpPlan>& ops = plan.subnets[subnet].ops;
  set_zero(index, sizeof(*index), stream);
  const auto run_batch = [&](Stream to) {
    for (const OpPlan& op : ops) try {
        run_layer({op, memory.descriptors, memory.packed, memory.images, activations, cursor},
                  plan.precision, to);
      } catch (const Error& error) {
        throw Error(std::string(error.what()) + ", for " + described(op));
      }
    const TensorPlan& logits = ops.back().out;
    score_layer({activations, logits.offset, logits.image_bytes, subnet, cursor, scores}, to);
  };
  const int64_t batches = (images + batch - 1) / batch;
  run_batch(stream);  // not recorded: the first launch of a kernel may load it, which takes more
  if (batches == 1) return;
  if (batches == 2) return run_batch(stream);  // what is launched once is not worth a recording
  const Graph graph(stream, run_batch);
  for (int64_t b = 1; b < batches; ++b) graph.launch(stream);
}

int64_t up(int64_t bytes) { return (bytes + 255) / 256 * 256; }

OpPlan without_rest(OpPlan op) {  // of a chain: what comes before the batch norm
  op.residual = kNone;
  op.low = -INFINITY;
  op.high = INFINITY;
  return op;
}

OpPlan normalising(const OpPlan& of, const NormPlan& norm) {  // the batch norm and the rest
  OpPlan op = of;
  const int64_t padded = (norm.corrected - norm.passing) / 2;
  op.kind = OpKind::affine;
  op.in = op.out;
  op.weights = norm.passing * 4;
  op.bias = (norm.passing + padded) * 4;
  return op;
}

// Sends the images through a sub-network, each batch norm in training mode; leaves the corrections
// of its weights.
void recalibrate(const Plan& plan, const SubnetPlan& subnet, const Memory& memory, Stream stream) {
  const int64_t images = memory.recalibration_count;
  if (images > kMostRows / plan.most_pixels)
    throw Error("a recalibration on " + std::to_string(images) + " images is too large: take " +
                std::to_string(kMostRows / plan.most_pixels) + " at most");
  auto* corrections = reinterpret_cast<float*>(memory.recalibration);
  unsigned char* partials = memory.recalibration + up(plan.corrections * 4);
  unsigned char* activations = partials + up(partial_doubles(plan.most_channels) * 8);
  const Cursor cursor{nullptr, static_cast<int32_t>(images), images};
  LayerArgs layer{
      {}, memory.descriptors, memory.packed, memory.recalibration_images, activations, cursor};
  for (size_t i = 0; i < subnet.recalibration.size(); ++i) {
    const OpPlan& op = subnet.recalibration[i];
    const NormPlan& norm = subnet.norms[i];
    layer.op = norm.full < 0 ? op : without_rest(op);
    run_layer(layer, plan.precision, stream);
    if (norm.full < 0) continue;
    measure_norm({op, norm, memory.descriptors, memory.full, activations, images,
                  reinterpret_cast<double*>(partials), corrections},
                 plan.precision, stream);
    LayerArgs rest = layer;
    rest.op = normalising(op, norm);
    rest.packed = memory.recalibration;  // there lie its scales and shifts
    run_layer(rest, plan.precision, stream);
  }
}

}  // namespace

int64_t recalibration_bytes(const Plan& plan, int64_t images) {
  if (images == 0) return 0;
  return up(plan.corrections * 4) + up(partial_doubles(plan.most_channels) * 8) +
         up(plan.recalibration_image_bytes * images);
}

int streams_for(const Plan& plan) {
  const auto in_layers = static_cast<int>(plan.subnets.size()) - plan.whole_count;
  return std::min(in_layers, kMostStreams);
}

int64_t batch_for(const Plan& plan, int64_t images, int64_t bytes) {
  const int64_t all = std::max<int64_t>(1, plan.layer_image_bytes * streams_for(plan));
  return std::max<int64_t>(
      1, std::min({images, kMostBatch, bytes / all, kMostRows / plan.most_pixels}));
}

int64_t activation_bytes(const Plan& plan, int64_t batch) {
  return (stream_bytes(plan, batch) + 255) / 256 * 256 * streams_for(plan);
}

void evaluate(const Plan& plan, const Memory& memory, int64_t images, int64_t batch,
              const Scores& scores, Stream stream) {
  if (plan.subnets.empty()) return;
  const auto packings = static_cast<int64_t>(plan.subnets.size() * plan.subnets.front().ops.size());
  if (scores.correct != nullptr)
    set_zero(scores.correct, static_cast<int64_t>(plan.subnets.size()) * 4, stream);
  if (images == 0) return;
  PackArgs packing{reinterpret_cast<const PackPlan*>(memory.descriptors + plan.pack_plans),
                   memory.descriptors, memory.full, memory.packed, nullptr};
  pack(packing, plan.precision, packings, plan.most_pack_words, stream);
  if (memory.recalibration_count > 0) {
    for (const SubnetPlan& subnet : plan.subnets) recalibrate(plan, subnet, memory, stream);
    packing.corrections = reinterpret_cast<const float*>(memory.recalibration);
    pack(packing, plan.precision, packings, plan.most_pack_words, stream);
  }
  if (plan.whole_count > 0) run_whole(plan, memory, images, scores, stream);
  const int streams = streams_for(plan);
  if (streams == 0) return;
  const int64_t own_bytes = activation_bytes(plan, batch) / streams;
  const Fork fork(stream, streams);
  int turn = 0;
  for (size_t s = 0; s < plan.subnets.size(); ++s) {
    if (plan.subnets[s].whole) continue;
    run_layers(plan, static_cast<int>(s), memory, memory.activations + turn * own_bytes, images,
               batch, scores, fork[turn]);
    turn = (turn + 1) % streams;
  }
}

}  // namespace rlal::cuda
