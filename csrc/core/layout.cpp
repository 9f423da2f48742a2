#include "core/layout.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <utility>

#include "core/winograd.h"

namespace rlal {
namespace {

// A tensor smaller than this (in bytes, at full width) stays in the second-level cache anyway.
constexpr int64_t kStreamedFrom = 128 << 10;

bool convolves(const OpSpec& op) { return op.kind == OpKind::conv || op.kind == OpKind::depthwise; }

bool tiles(const OpSpec& op) {  // may be computed by Winograd, four rows at a time
  return op.kind == OpKind::conv && winograd_applies(op.window);
}

bool has_regions(const OpSpec& op) {
  return op.kind != OpKind::affine && op.kind != OpKind::select;
}

std::vector<int> readers_of(const Network& network) {
  std::vector<int> readers(network.tensors.size());
  for (const OpSpec& op : network.ops) {
    ++readers[op.input];
    if (op.residual >= 0) ++readers[op.residual];
  }
  return readers;
}

}  // namespace

Buffer::Buffer(int64_t floats) : size_(floats) {
  const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
  float* memory = static_cast<float*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64)));
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, 0, bytes);
  data_.reset(memory);
}

void Buffer::Free::operator()(float* p) const { std::free(p); }

// Short rows go together, so that what is set up for a row is shared by enough pixels.
int rows_at_once(const Network& network, int op) {
  constexpr int kPixels = 16;
  constexpr int kMostRows = 4;
  if (tiles(network.ops[op])) return kWinogradRows;
  const int width = network.tensors[network.ops[op].output].width;
  return std::clamp(kPixels / width, 1, kMostRows);
}

bool Layout::Geometry::operator==(const Geometry& other) const {
  return height == other.height && width == other.width && stored == other.stored;
}

Layout::Layout(const Network& network, int lanes, Storage storage)
    : lanes_(lanes), storage_(storage), image_channels_(network.channels(0)) {
  find_segments(network);
  find_geometry(network);
  assign_slots(network);
  for (const OpSpec& op : network.ops) {
    if (!convolves(op)) continue;
    const bool dense = op.kind == OpKind::conv;
    scratch_ = std::max(scratch_, conv_scratch(dense ? network.channels(op.input) : 1, lanes));
    if (tiles(op))
      scratch_ = std::max(scratch_, winograd_scratch(network.channels(op.input),
                                                     network.channels(op.output), lanes));
  }
}

// Depthwise convolutions, pools and what surrounds them do little work on the widest tensors, so
// without interleaving they wait for memory; such a segment ends after the convolution that follows
// a depthwise one, whose output usually is narrow. Pairs of 3x3 convolutions keep what lies between
// them, as in a residual block.
void Layout::find_segments(const Network& network) {
  const std::vector<int> readers = readers_of(network);
  const auto linked = [&](size_t i) {
    const OpSpec &op = network.ops[i], &next = network.ops[i + 1];
    const TensorSpec& between = network.tensors[op.output];
    const int64_t bytes = static_cast<int64_t>(between.height) * between.width * lanes_ *
                          network.channels(op.output) * sizeof(float);
    const bool light = op.kind == OpKind::depthwise || next.kind == OpKind::depthwise ||
                       next.kind == OpKind::max_pool || next.kind == OpKind::avg_pool;
    const bool pair = tiles(op) && tiles(next);
    return (light || pair) && has_regions(op) && has_regions(next) && next.input == op.output &&
           readers[op.output] == 1 && op.residual < 0 && bytes > kStreamedFrom;
  };
  const auto complete = [&](size_t first, size_t last) {
    if (last == first) return false;
    const OpSpec &before = network.ops[last - 1], &op = network.ops[last];
    return tiles(op) || (before.kind == OpKind::depthwise && op.kind == OpKind::conv);
  };
  for (size_t i = 0; i < network.ops.size(); ++i) {
    size_t last = i;
    while (storage_ == Storage::streamed && last + 1 < network.ops.size() && linked(last) &&
           !complete(i, last))
      ++last;
    segments_.push_back({static_cast<int>(i), static_cast<int>(last)});
    i = last;
  }
}

// The zeros around an image size are as wide as any reader needs. They are the same for all tensors
// of a size, so that a residual lies like the result it is added to.
void Layout::find_geometry(const Network& network) {
  struct Zeros {
    int left = 0, gap = 0;
  };
  std::map<std::pair<int, int>, Zeros> zeros;
  for (const OpSpec& op : network.ops) {
    if (!convolves(op)) continue;
    const TensorSpec &in = network.tensors[op.input], &out = network.tensors[op.output];
    const Window& w = op.window;
    int right =
        (out.width - 1) * w.stride_w - w.pad_w + (w.kernel_w - 1) * w.dilation_w + 1 - in.width;
    if (tiles(op)) right = std::max(right, winograd_overshoot(w, in.width, out.width));
    Zeros& z = zeros[{in.height, in.width}];
    z.left = std::max(z.left, w.pad_w);
    z.gap = std::max({z.gap, w.pad_w, right});
  }
  for (const TensorSpec& t : network.tensors) {
    const Zeros z = zeros[{t.height, t.width}];
    geometry_.push_back({t.height, t.width, t.height, z.left, z.gap});
  }
  for (const Segment& segment : segments_)
    for (int i = segment.first + 1; i <= segment.last; ++i) {
      const Window& w = network.ops[i].window;
      const int read = rows_at_once(network, i), made = rows_at_once(network, i - 1);
      const int span = (read - 1) * w.stride_h + (w.kernel_h - 1) * w.dilation_h + 1;
      Geometry& g = geometry_[network.ops[i].input];
      g.stored = std::min(g.height, span + made - 1);
    }
}

// A tensor takes a free slot of its geometry; its inputs' slots become free once no segment reads
// them any more. A residual that dies where it is added may be overwritten by the result: both are
// read and written pixel by pixel. That does not hold where the segment reads it otherwise, too.
void Layout::assign_slots(const Network& network) {
  std::vector<int> last_read(network.tensors.size(), -1);  // segments
  for (size_t s = 0; s < segments_.size(); ++s)
    for (int i = segments_[s].first; i <= segments_[s].last; ++i) {
      last_read[network.ops[i].input] = static_cast<int>(s);
      if (network.ops[i].residual >= 0) last_read[network.ops[i].residual] = static_cast<int>(s);
    }
  slot_of_.assign(network.tensors.size(), -1);
  std::vector<bool> busy;
  const auto release = [&](int tensor, size_t segment) {
    if (tensor > 0 && slot_of_[tensor] >= 0 && last_read[tensor] == static_cast<int>(segment))
      busy[slot_of_[tensor]] = false;
  };
  const auto take = [&](int tensor) {
    const Geometry& g = geometry_[tensor];
    size_t found = 0;
    while (found < slots_.size() && (busy[found] || !(slots_[found].geometry == g))) ++found;
    if (found == slots_.size()) {
      slots_.push_back({g, 0});
      busy.push_back(false);
    }
    slots_[found].channels = std::max(slots_[found].channels, network.channels(tensor));
    busy[found] = true;
    slot_of_[tensor] = static_cast<int>(found);
  };
  for (size_t s = 0; s < segments_.size(); ++s) {
    const auto [first, last] = segments_[s];
    std::vector<int> dying;
    for (int i = first; i <= last; ++i) {
      const int residual = network.ops[i].residual;
      bool read_otherwise = storage_ == Storage::whole;
      for (int j = first; j <= last; ++j) read_otherwise |= network.ops[j].input == residual;
      if (residual >= 0 && !read_otherwise) release(residual, s);
      take(network.ops[i].output);
      dying.push_back(network.ops[i].input);
      if (residual >= 0 && read_otherwise) dying.push_back(residual);
    }
    for (const int tensor : dying) release(tensor, s);
  }
}

int64_t Layout::floats(const Geometry& g, int channels) const {
  // past the last row a reader may still look as far as between rows
  return (g.left + channels * g.plane() + g.gap) * lanes_;
}

Arena Layout::make_arena() const {
  Arena arena;
  for (const Slot& slot : slots_) arena.slots.emplace_back(floats(slot.geometry, slot.channels));
  arena.scratch = Buffer(scratch_);
  return arena;
}

int64_t Layout::image_floats() const { return floats(geometry_.front(), image_channels_); }

View Layout::view(int tensor, float* base, int channels) const {
  const Geometry& g = geometry_[tensor];
  return {base + static_cast<int64_t>(g.left) * lanes_,
          g.plane(),
          g.row(),
          channels,
          g.height,
          g.width,
          g.stored};
}

}  // namespace rlal
