// Ranks within rows, and what is drawn by rank (DELLA).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "numbers.h"
#include "structs.h"

namespace {

// Descending rank of each element of a row, ties by position: a radix sort, least significant digit first, of the bits
// in which the row's magnitudes differ at all (differences of 16-bit numbers have few).
class RowRanks {
 public:
  void operator()(const float* __restrict delta, int64_t n, uint32_t* __restrict ranks) {
    keys_.resize(n);
    other_.resize(n);
    uint32_t low = kNoSign, high = 0, used = 0;
    for (int64_t k = 0; k < n; ++k) {
      const uint32_t b = bits_of(delta[k]) & kNoSign;
      low = std::min(low, b);
      high = std::max(high, b);
      used |= b;
    }
    int zeros = 0;
    while (used != 0 && (used >> zeros & 1u) == 0) ++zeros;
    int width = 0;
    while (((high >> zeros) - (low >> zeros)) >> width != 0) ++width;
    const int passes = (width + kDigit - 1) / kDigit;
    const int digit = passes > 0 ? (width + passes - 1) / passes : 1;
    const uint32_t mask = (1u << digit) - 1;
    for (int64_t k = 0; k < n; ++k) {
      const uint32_t key = (high >> zeros) - ((bits_of(delta[k]) & kNoSign) >> zeros);  // the largest first
      keys_[k] = static_cast<uint64_t>(key) << 32 | static_cast<uint64_t>(k);
    }
    // Equal digits in a row would wait for each other's counter: kWays parts of the row go side by side.
    const int64_t part = n / kWays;
    for (int p = 0; p < passes; ++p) {
      const int shift = 32 + p * digit;
      std::memset(counts_, 0, sizeof(counts_));
      const uint64_t* __restrict from = keys_.data();
      uint64_t* __restrict to = other_.data();
      for (int64_t k = 0; k < part; ++k) {
        for (int w = 0; w < kWays; ++w) ++counts_[w][from[w * part + k] >> shift & mask];
      }
      for (int64_t k = kWays * part; k < n; ++k) ++counts_[kWays - 1][from[k] >> shift & mask];
      uint32_t sum = 0;
      for (uint32_t j = 0; j <= mask; ++j) {
        for (int w = 0; w < kWays; ++w) {
          const uint32_t own = counts_[w][j];
          counts_[w][j] = sum;
          sum += own;
        }
      }
      for (int64_t k = 0; k < part; ++k) {
        for (int w = 0; w < kWays; ++w) {
          const uint64_t key = from[w * part + k];
          to[counts_[w][key >> shift & mask]++] = key;
        }
      }
      for (int64_t k = kWays * part; k < n; ++k) to[counts_[kWays - 1][from[k] >> shift & mask]++] = from[k];
      keys_.swap(other_);
    }
    for (int64_t k = 0; k < n; ++k) ranks[static_cast<uint32_t>(keys_[k])] = static_cast<uint32_t>(k);
  }

 private:
  static constexpr int kDigit = 11;
  static constexpr int kWays = 2;
  uint32_t counts_[kWays][1 << kDigit];
  std::vector<uint64_t> keys_, other_;
};

void apply_drawn_by_rank(const Part& part, const float* delta, const uint32_t* __restrict draws, int64_t n,
                         RowRanks& ranker, uint32_t* __restrict ranks, float* __restrict out) {
  ranker(delta, n, ranks);
  const int64_t steps = std::max<int64_t>(n - 1, 1);
  const double slope = (part.high - part.low) / static_cast<double>(steps);
  for (int64_t k = 0; k < n; ++k) {
    const double p = n > 1 ? static_cast<double>(steps - static_cast<int64_t>(ranks[k])) * slope + part.low : part.high;
    out[k] *= static_cast<double>(draws[k]) < p * 2147483648.0 ? 1.0f : 0.0f;
    if (part.rescale) out[k] *= static_cast<float>(1.0 / p);
  }
}

}  // namespace
