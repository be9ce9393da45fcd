// Merging on a CPU, one pass over the sources: what evomerge.merging.group does with torch, block by block in the first
// cache, bit for bit the same. Built by build.py on the user's machine with -ffp-contract=off: products and sums are
// rounded one by one, so that neither vector width nor thread count changes a bit.
//
// Pointers point at the first element of the call's range; `start` is that element's position in the tensor.
//
// This file is what Python calls (cuts.py, masked.py, sums.py); what it is made of lies in the headers.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "magnitudes.h"
#include "masked_few.h"
#include "merge.h"
#include "structs.h"
#include "sums.h"
#include "values.h"

namespace {

constexpr int64_t kSumBlock = 1 << 15;  // elements of one partial sum: chunks.BLOCK

}  // namespace

extern "C" {

int32_t evomerge_version() { return 1; }

// sum w_i x_i, or W_0 + sum w_i (x_i - W_0) where `base` is given. Returns 1 where a result is not finite.
int32_t evomerge_sum(int32_t n_ops, const Operand* ops, const float* weights, const Operand* base, int64_t count,
                     const Output* out) {
  if (const SumFew few = sum_few(n_ops, ops, base, *out)) {
    const bool failed = few(ops, weights, base, count, *out);
    streamed();
    if (!failed) return 0;
  }
  float own[kBlock], total[kBlock], zero[kBlock];
  bool bad = false;
  for (int64_t at = 0; at < count; at += kBlock) {
    const int64_t n = std::min(kBlock, count - at);
    if (base != nullptr) load(*base, at, n, zero);
    if (n_ops == 0) std::memset(total, 0, sizeof(total));
    for (int i = 0; i < n_ops; ++i) {
      load_delta(ops[i], base != nullptr ? zero : nullptr, at, n, own);
      const float w = weights[i];
      if (i == 0) {
        for (int64_t k = 0; k < n; ++k) total[k] = own[k] * w;
      } else {
        for (int64_t k = 0; k < n; ++k) total[k] += own[k] * w;
      }
    }
    if (base != nullptr) {
      for (int64_t k = 0; k < n; ++k) total[k] += zero[k];
    }
    bad |= store(total, *out, at, n, count);
  }
  streamed();
  return bad;
}

// Dot products of all pairs (i <= j), one row of them for every kSumBlock elements.
void evomerge_gram(int32_t n_ops, const Operand* ops, const Operand* base, const Boundary* selection, int64_t start,
                   int64_t count, double* out) {
  constexpr int kLanes = 16;
  const int pairs = n_ops * (n_ops + 1) / 2;
  std::vector<float> values(kBlock * std::max(n_ops, 1)), zero(kBlock), mean(kBlock), spread(kBlock);
  std::vector<double> sums(static_cast<size_t>(pairs) * kLanes);
  for (int64_t first = 0; first < count; first += kSumBlock, out += pairs) {
    std::fill(sums.begin(), sums.end(), 0.0);
    const int64_t end = std::min(first + kSumBlock, count);
    for (int64_t at = first; at < end; at += kBlock) {
      const int64_t n = std::min(kBlock, end - at);
      if (base != nullptr) load(*base, at, n, zero.data());
      for (int i = 0; i < n_ops; ++i) {
        float* own = values.data() + i * kBlock;
        load_delta(ops[i], base != nullptr ? zero.data() : nullptr, at, n, own);
        for (int64_t k = n; k < kBlock; ++k) own[k] = 0.0f;
      }
      if (selection != nullptr) {
        variance(n_ops, values.data(), kBlock, n, mean.data(), spread.data());
        choose(*selection, start + at, spread.data(), n, mean.data());
        for (int i = 0; i < n_ops; ++i) {
          float* __restrict own = values.data() + i * kBlock;
          for (int64_t k = 0; k < n; ++k) own[k] *= mean[k];
        }
      }
      double* sum = sums.data();
      for (int i = 0; i < n_ops; ++i) {
        for (int j = i; j < n_ops; ++j, sum += kLanes) {
          const float* __restrict a = values.data() + i * kBlock;
          const float* __restrict b = values.data() + j * kBlock;
          double lanes[kLanes];
          for (int l = 0; l < kLanes; ++l) lanes[l] = sum[l];
          for (int64_t k = 0; k < kBlock; k += kLanes) {
            for (int l = 0; l < kLanes; ++l) {
              lanes[l] += static_cast<double>(a[k + l]) * static_cast<double>(b[k + l]);
            }
          }
          for (int l = 0; l < kLanes; ++l) sum[l] = lanes[l];
        }
      }
    }
    for (int p = 0; p < pairs; ++p) {
      double total = 0.0;
      for (int l = 0; l < kLanes; ++l) total += sums[p * kLanes + l];
      out[p] = total;
    }
  }
}

// How many scores (Score) have which upper 16 bits (of 31): adds to out[32768].
void evomerge_histogram(int32_t n_ops, const Operand* ops, const Operand* base, int64_t count, int64_t* out) {
  constexpr int kCopies = 4;  // equal neighbours would wait for each other's increments
  Score score(n_ops);
  std::vector<uint32_t> counts(kCopies << 15, 0);
  uint32_t bits[kBlock];
  for (int64_t at = 0; at < count; at += kBlock) {
    const int64_t n = std::min(kBlock, count - at);
    score(n_ops, ops, base, at, n, bits);
    int64_t k = 0;
    for (; k + kCopies <= n; k += kCopies) {
      for (int c = 0; c < kCopies; ++c) ++counts[(c << 15) + (bits[k + c] >> 16)];
    }
    for (; k < n; ++k) ++counts[bits[k] >> 16];
  }
  for (int64_t j = 0; j < (1 << 15); ++j) {
    int64_t total = 0;
    for (int c = 0; c < kCopies; ++c) total += counts[(c << 15) + j];
    out[j] += total;
  }
}

// Scores whose upper bits are `bin`, with their positions. Returns 0 where there was no room for all.
int32_t evomerge_collect(int32_t n_ops, const Operand* ops, const Operand* base, int64_t start, int64_t count,
                         int32_t bin, Found* found) {
  Score score(n_ops);
  uint32_t bits[kBlock];
  for (int64_t at = 0; at < count; at += kBlock) {
    const int64_t n = std::min(kBlock, count - at);
    score(n_ops, ops, base, at, n, bits);
    if (!note_bin(bin, start + at, reinterpret_cast<const float*>(bits), n, *found)) return 0;
  }
  return 1;
}

// The n-th largest score (n >= 1) of a small tensor, ties by position: its bits and position.
void evomerge_nth(int32_t n_ops, const Operand* ops, const Operand* base, int64_t count, int64_t n, uint32_t* nth_bits,
                  int64_t* position) {
  Score score(n_ops);
  std::vector<uint64_t> keys(count);
  uint32_t bits[kBlock];
  for (int64_t at = 0; at < count; at += kBlock) {
    const int64_t part = std::min(kBlock, count - at);
    score(n_ops, ops, base, at, part, bits);
    for (int64_t k = 0; k < part; ++k) keys[at + k] = static_cast<uint64_t>(kNoSign - bits[k]) << 32 | (at + k);
  }
  std::nth_element(keys.begin(), keys.begin() + (n - 1), keys.end());
  *nth_bits = kNoSign - static_cast<uint32_t>(keys[n - 1] >> 32);
  *position = static_cast<int64_t>(keys[n - 1] & 0xFFFFFFFFu);
}

// How many scores of one bin have which lower 16 bits: adds to out[65536].
void evomerge_low_histogram(int32_t n_ops, const Operand* ops, const Operand* base, int64_t count, int32_t bin,
                            int64_t* out) {
  Score score(n_ops);
  uint32_t bits[kBlock];
  for (int64_t at = 0; at < count; at += kBlock) {
    const int64_t n = std::min(kBlock, count - at);
    score(n_ops, ops, base, at, n, bits);
    for (int64_t k = 0; k < n; ++k) {
      if (bits[k] >> 16 == static_cast<uint32_t>(bin)) ++out[bits[k] & 0xFFFFu];
    }
  }
}

// How many scores equal `wanted`, for every kSumBlock elements.
void evomerge_equal(int32_t n_ops, const Operand* ops, const Operand* base, int64_t count, uint32_t wanted,
                    int64_t* out) {
  Score score(n_ops);
  uint32_t bits[kBlock];
  for (int64_t first = 0; first < count; first += kSumBlock) {
    const int64_t end = std::min(first + kSumBlock, count);
    int64_t seen = 0;
    for (int64_t at = first; at < end; at += kBlock) {
      const int64_t n = std::min(kBlock, end - at);
      score(n_ops, ops, base, at, n, bits);
      for (int64_t k = 0; k < n; ++k) seen += bits[k] == wanted;
    }
    *out++ = seen;
  }
}

// Where the n-th score (n >= 1) that equals `wanted` is; -1 where there are fewer.
int64_t evomerge_position(int32_t n_ops, const Operand* ops, const Operand* base, int64_t count, uint32_t wanted,
                          int64_t n) {
  Score score(n_ops);
  uint32_t bits[kBlock];
  for (int64_t at = 0; at < count; at += kBlock) {
    const int64_t part = std::min(kBlock, count - at);
    score(n_ops, ops, base, at, part, bits);
    int64_t seen = 0;
    for (int64_t k = 0; k < part; ++k) seen += bits[k] == wanted;
    if (seen < n) {
      n -= seen;
      continue;
    }
    for (int64_t k = 0; k < part; ++k) {
      n -= bits[k] == wanted;
      if (n == 0) return at + k;
    }
  }
  return -1;
}

// group.masked. `row` > 0: whole rows of that many elements (kDrawnByRank). found: two for each part (lower, upper).
// Returns bit 0 where a result is not finite, bit 1 where `found` was too small.
int32_t evomerge_masked(int32_t n_parts, const Part* parts, const Operand* base, int64_t start, int64_t count,
                        int64_t row, int32_t elect, int32_t normalize, float lambda, float least,
                        const Boundary* selection, int32_t n_votes, const Operand* votes, Found* found, const Output* out) {
  const MaskedFew few =
      selection == nullptr ? masked_few(n_parts, parts, *base, elect, normalize, *out) : nullptr;
  if (few != nullptr) {
    const int32_t status = few(parts, *base, start, count, lambda, least, found, *out);
    streamed();
    if (!(status & 1)) return status;
    for (int i = 0; found != nullptr && i < 2 * n_parts; ++i) found[i].count = 0;
  }
  const int64_t length = row > 0 ? row : kBlock;
  Merger merge(n_parts, length);
  const Consensus how{elect, normalize, lambda, least};
  bool bad = false, complete = true;
  for (int64_t at = 0; at < count; at += length) {
    const int64_t n = std::min(length, count - at);
    const float* merged = merge(n_parts, parts, *base, start, at, n, how, selection, n_votes, votes, found, complete, nullptr);
    bad |= store(merged, *out, at, n, count);
  }
  streamed();
  return (bad ? 1 : 0) | (complete ? 0 : 2);
}

// The same for single elements, by their positions. Pointers are those of position `start`.
int32_t evomerge_masked_at(int32_t n_parts, const Part* parts, const Operand* base, int64_t start,
                           const int64_t* positions, int64_t count, int32_t elect, int32_t normalize, float lambda,
                           float least, const Output* out) {
  Merger merge(n_parts, kBlock);
  const Consensus how{elect, normalize, lambda, least};
  bool bad = false, complete = true;
  for (int64_t at = 0; at < count; at += kBlock) {
    const int64_t n = std::min(kBlock, count - at);
    const float* merged =
        merge(n_parts, parts, *base, start, 0, n, how, nullptr, 0, nullptr, nullptr, complete, positions + at);
    for (int64_t k = 0; k < n; ++k) bad |= store(merged + k, *out, positions[at + k] - start, 1, 1);
  }
  streamed();
  return bad;
}

// operand.LowRank.delta: rows first..end of scale * left @ right, summed in float64 rank by rank.
void evomerge_low_rank(const double* left, const double* right, int64_t rank, int64_t rows, int64_t columns,
                       double scale, float* out) {
  double sums[kBlock];
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t at = 0; at < columns; at += kBlock) {
      const int64_t n = std::min(kBlock, columns - at);
      std::memset(sums, 0, sizeof(sums));
      for (int64_t k = 0; k < rank; ++k) {
        const double l = left[r * rank + k];
        const double* __restrict from = right + k * columns + at;
        for (int64_t c = 0; c < n; ++c) sums[c] += l * from[c];
      }
      for (int64_t c = 0; c < n; ++c) out[r * columns + at + c] = static_cast<float>(sums[c] * scale);
    }
  }
}

}  // extern "C"
