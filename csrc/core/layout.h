// Where the activations of a network lie, and which operations run interleaved row by row.
#pragma once

#include <memory>
#include <vector>

#include "core/network.h"

namespace rlal {

// A 64-byte aligned float buffer that starts zeroed.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t floats);
  float* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(float* p) const;
  };
  std::unique_ptr<float, Free> data_;
  int64_t size_ = 0;
};

// Activations of one thread.
struct Arena {
  std::vector<Buffer> slots;
  Buffer scratch;
};

// Operations [first, last]. In a segment of several each reads only what the one before it writes,
// and they run a few rows at a time: the tensors between them keep only the rows that are still
// needed.
struct Segment {
  int first, last;
};

// Rows of its output that an operation of a segment computes at a time.
int rows_at_once(const Network& network, int op);

// Slots are shared by tensors of one geometry whose lives do not overlap. Only pixels are ever
// written, so the zeros around them stay.
class Layout {
 public:
  // Whole: every operation is a segment, every tensor is stored whole, and a result never takes the
  // place of the residual that is added to it.
  enum class Storage { streamed, whole };
  Layout(const Network& network, int lanes, Storage storage);

  const std::vector<Segment>& segments() const { return segments_; }
  Arena make_arena() const;

  // `base` is the start of a tensor's buffer.
  View view(int tensor, float* base, int channels) const;
  View view(int tensor, const Arena& arena, int channels) const {
    return view(tensor, arena.slots[slot_of_[tensor]].data(), channels);
  }
  int64_t image_floats() const;  // of one block of images

 private:
  struct Geometry {
    int height, width, stored;
    int left, gap;  // zero pixels before the first row, and between rows

    int64_t row() const { return width + gap; }
    int64_t plane() const { return row() * (stored + 1); }  // with the zero row
    bool operator==(const Geometry& other) const;
  };
  struct Slot {
    Geometry geometry;
    int channels;
  };
  void find_segments(const Network& network);
  void find_geometry(const Network& network);
  void assign_slots(const Network& network);
  int64_t floats(const Geometry& geometry, int channels) const;

  int lanes_;
  Storage storage_;
  int64_t scratch_ = 0;
  int image_channels_;
  std::vector<Segment> segments_;
  std::vector<Geometry> geometry_;  // per tensor
  std::vector<int> slot_of_;        // per tensor, -1 for the images
  std::vector<Slot> slots_;
};

}  // namespace rlal
