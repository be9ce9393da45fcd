// Scores (magnitudes of task vectors, or their variance) and what lies before a cut of them: selection.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "numbers.h"
#include "structs.h"
#include "values.h"

namespace {

// group.variance of rows that lie `stride` apart: into `out`, with `mean` as scratch.
void variance(int n_ops, const float* rows, int64_t stride, int64_t n, float* __restrict mean, float* __restrict out) {
  const float count = static_cast<float>(n_ops);
  for (int64_t k = 0; k < n; ++k) mean[k] = rows[k];
  for (int i = 1; i < n_ops; ++i) {
    const float* __restrict row = rows + i * stride;
    for (int64_t k = 0; k < n; ++k) mean[k] += row[k];
  }
  for (int64_t k = 0; k < n; ++k) {
    mean[k] /= count;
    out[k] = 0.0f;
  }
  for (int i = 0; i < n_ops; ++i) {
    const float* __restrict row = rows + i * stride;
    for (int64_t k = 0; k < n; ++k) {
      const float d = row[k] - mean[k];
      out[k] += d * d;
    }
  }
  for (int64_t k = 0; k < n; ++k) out[k] /= count;
}

// Magnitude bits of a task vector (n_ops == 1), or of the variance over several.
struct Score {
  std::vector<float> base, mean, spread, deltas;
  explicit Score(int n_ops) : base(kBlock), mean(kBlock), spread(kBlock), deltas(kBlock * std::max(n_ops, 1)) {}

  void operator()(int n_ops, const Operand* ops, const Operand* base_op, int64_t at, int64_t n,
                  uint32_t* __restrict bits) {
    if (base_op != nullptr) load(*base_op, at, n, base.data());
    const float* b = base_op != nullptr ? base.data() : nullptr;
    for (int i = 0; i < n_ops; ++i) load_delta(ops[i], b, at, n, deltas.data() + i * kBlock);
    if (n_ops > 1) variance(n_ops, deltas.data(), kBlock, n, mean.data(), spread.data());
    const float* __restrict from = n_ops > 1 ? spread.data() : deltas.data();
    for (int64_t k = 0; k < n; ++k) bits[k] = bits_of(from[k]) & kNoSign;
  }
};

// 1 before the cut, 0 after it. (With a bin in its place: 1 in the bins above.)
struct Before {
  uint32_t above, equal;
  int64_t end;
  Before(const Boundary& b, int64_t block_start) {
    if (b.bin >= 0) {
      above = (static_cast<uint32_t>(b.bin) << 16) | 0xFFFFu;
      equal = 0;
      end = 0;
      all = false;
    } else {
      all = b.bits < 0;  // everything lies before it
      above = all ? 0 : static_cast<uint32_t>(b.bits);
      equal = above;
      end = std::min<int64_t>(std::max<int64_t>(b.position + 1 - block_start, 0), INT32_MAX);
    }
  }
  bool all;
};

// 1 where a score (>= 0) lies before a cut, else 0.
void choose(const Boundary& cut, int64_t position, const float* __restrict score, int64_t n, float* __restrict out) {
  const Before before(cut, position);
  const int32_t end = static_cast<int32_t>(before.end);
  const uint32_t all = before.all;
  for (int32_t k = 0; k < static_cast<int32_t>(n); ++k) {
    const uint32_t bits = bits_of(score[k]) & kNoSign;
    out[k] = (all | (bits > before.above) | ((bits == before.equal) & (k < end))) ? 1.0f : 0.0f;
  }
}

void apply_ranked(const Part& part, int64_t position, const float* __restrict delta, int64_t n, float* __restrict out) {
  const Before low(part.lower, position), up(part.upper, position);
  const int32_t low_end = static_cast<int32_t>(low.end), up_end = static_cast<int32_t>(up.end);
  const uint32_t low_all = low.all, up_all = up.all;
  for (int32_t k = 0; k < static_cast<int32_t>(n); ++k) {
    const uint32_t bits = bits_of(delta[k]) & kNoSign;
    const uint32_t in_low = low_all | (bits > low.above) | ((bits == low.equal) & (k < low_end));
    const uint32_t in_up = up_all | (bits > up.above) | ((bits == up.equal) & (k < up_end));
    out[k] *= (in_low & (in_up ^ 1u)) ? 1.0f : 0.0f;
  }
}

// The same with positions that do not follow each other.
void apply_ranked_at(const Part& part, const int64_t* positions, const float* delta, int64_t n, float* out) {
  for (int64_t k = 0; k < n; ++k) {
    const int64_t bits = bits_of(delta[k]) & kNoSign;
    auto before = [&](const Boundary& b) { return bits > b.bits || (bits == b.bits && positions[k] <= b.position); };
    out[k] *= before(part.lower) && !before(part.upper) ? 1.0f : 0.0f;
  }
}

// Lists the elements of a bin. Returns false where there is no room for them and eight more.
bool note_bin(int32_t bin, int64_t position, const float* __restrict delta, int64_t n, Found& found) {
  const uint32_t wanted = static_cast<uint32_t>(bin);
  // First a byte for each element, in wide vectors; then only the words of eight bytes that are not all 0.
  alignas(64) uint8_t hits[kBlock];
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t part = std::min(kBlock, n - first);
    const float* __restrict from = delta + first;
    for (int64_t k = 0; k < part; ++k) hits[k] = (bits_of(from[k]) & kNoSign) >> 16 == wanted;
    for (int64_t k = part; k % 8 != 0; ++k) hits[k] = 0;
    for (int64_t g = 0; g < part; g += 8) {
      uint64_t word;
      std::memcpy(&word, hits + g, 8);
      if (word == 0) continue;
      if (found.count + 8 > found.capacity) return false;
      for (; word != 0; word &= word - 1) {
        const int64_t k = g + (__builtin_ctzll(word) >> 3);
        found.bits[found.count] = bits_of(from[k]) & kNoSign;
        found.positions[found.count++] = position + first + k;
      }
    }
  }
  return true;
}

}  // namespace
