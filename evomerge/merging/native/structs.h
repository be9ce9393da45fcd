// What Python hands over: the same structures as in structs.py.
#pragma once

#include <cstdint>

namespace {

constexpr int64_t kBlock = 512;  // elements held in the first cache at a time

enum DType : int32_t { kF32 = 0, kBF16 = 1, kF16 = 2 };

}  // namespace

extern "C" {

struct Operand {
  const void* data;
  int32_t dtype;
  int32_t is_delta;  // already W_i - W_0: nothing is subtracted
};

struct Output {
  void* data;
  int32_t dtype;    // of the memory
  int32_t rounded;  // to which values are rounded first
};

// A cut (selection.Cut), or a bin of the histogram in which it lies somewhere (bin >= 0).
struct Boundary {
  int64_t position;
  int32_t bits;
  int32_t bin;
};

enum MaskKind : int32_t { kAll = 0, kRanked = 1, kDrawn = 2, kDrawnByRank = 3 };

struct Part {
  Operand operand;
  float weight, share, vote;
  int32_t has_vote;
  int32_t mask;
  Boundary upper, lower;  // kept: before lower, not before upper
  uint64_t key;
  double low, high;  // kDrawnByRank
  uint32_t below;    // kDrawn
  int32_t rescale;
};

// Elements whose bin holds a boundary that is not known yet.
struct Found {
  uint32_t* bits;
  int64_t* positions;
  int64_t capacity;
  int64_t count;
};

}  // extern "C"
