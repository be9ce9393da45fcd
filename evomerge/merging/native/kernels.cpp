// Merging on a CPU, one pass over the sources: what evomerge.merging.group does with torch, block by block in the first
// cache, bit for bit the same. Built by `compile.py` on the user's machine with -ffp-contract=off: products and sums are
// rounded one by one, so that neither vector width nor thread count changes a bit.
//
// Pointers point at the first element of the call's range; `start` is that element's position in the tensor.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t kBlock = 512;          // elements held in the first cache at a time
constexpr int64_t kSumBlock = 1 << 15;   // elements of one partial sum: chunks.BLOCK
constexpr uint32_t kNoSign = 0x7FFFFFFFu;

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

namespace {

// ---- types

void load(const Operand& x, int64_t at, int64_t n, float* __restrict out) {
  if (x.dtype == kF32) {
    std::memcpy(out, static_cast<const float*>(x.data) + at, n * sizeof(float));
  } else if (x.dtype == kBF16) {
    const uint16_t* __restrict in = static_cast<const uint16_t*>(x.data) + at;
    uint32_t* __restrict bits = reinterpret_cast<uint32_t*>(out);
    for (int64_t k = 0; k < n; ++k) bits[k] = static_cast<uint32_t>(in[k]) << 16;
  } else {
    const _Float16* __restrict in = static_cast<const _Float16*>(x.data) + at;
    for (int64_t k = 0; k < n; ++k) out[k] = static_cast<float>(in[k]);
  }
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// To bfloat16, to nearest even, as torch does it.
inline uint16_t bf16(uint32_t bits) {
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return (bits & kNoSign) > 0x7F800000u ? 0x7FC0 : static_cast<uint16_t>(rounded);
}

// Writes a block; returns whether a value is not finite.
bool store(const float* __restrict in, const Output& out, int64_t at, int64_t n) {
  uint32_t bad = 0;
  if (out.rounded == kF32) {
    float* __restrict to = static_cast<float*>(out.data) + at;
    for (int64_t k = 0; k < n; ++k) {
      bad |= (bits_of(in[k]) & 0x7F800000u) == 0x7F800000u;
      to[k] = in[k];
    }
  } else if (out.rounded == kBF16) {
    if (out.dtype == kBF16) {
      uint16_t* __restrict to = static_cast<uint16_t*>(out.data) + at;
      for (int64_t k = 0; k < n; ++k) {
        const uint16_t x = bf16(bits_of(in[k]));
        bad |= (x & 0x7F80u) == 0x7F80u;
        to[k] = x;
      }
    } else {
      uint32_t* __restrict to = reinterpret_cast<uint32_t*>(static_cast<float*>(out.data) + at);
      for (int64_t k = 0; k < n; ++k) {
        const uint32_t x = static_cast<uint32_t>(bf16(bits_of(in[k]))) << 16;
        bad |= (x & 0x7F800000u) == 0x7F800000u;
        to[k] = x;
      }
    }
  } else {
    for (int64_t k = 0; k < n; ++k) {
      const _Float16 x = static_cast<_Float16>(in[k]);
      const float back = static_cast<float>(x);
      bad |= (bits_of(back) & 0x7F800000u) == 0x7F800000u;
      if (out.dtype == kF16) {
        static_cast<_Float16*>(out.data)[at + k] = x;
      } else {
        static_cast<float*>(out.data)[at + k] = back;
      }
    }
  }
  return bad != 0;
}

// A source's values, or its task vector where the base's values are given.
void load_delta(const Operand& x, const float* __restrict base, int64_t at, int64_t n, float* __restrict out) {
  if (base == nullptr || x.is_delta) return load(x, at, n, out);
  if (x.dtype == kBF16) {
    const uint16_t* __restrict in = static_cast<const uint16_t*>(x.data) + at;
    for (int64_t k = 0; k < n; ++k) out[k] = float_of(static_cast<uint32_t>(in[k]) << 16) - base[k];
  } else if (x.dtype == kF32) {
    const float* __restrict in = static_cast<const float*>(x.data) + at;
    for (int64_t k = 0; k < n; ++k) out[k] = in[k] - base[k];
  } else {
    const _Float16* __restrict in = static_cast<const _Float16*>(x.data) + at;
    for (int64_t k = 0; k < n; ++k) out[k] = static_cast<float>(in[k]) - base[k];
  }
}

// ---- random numbers: draws.py

void draw(uint64_t key, int64_t start, int64_t n, uint64_t* __restrict scratch, uint32_t* __restrict out) {
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ull;
  const int64_t first = start >> 1, pairs = ((start + n + 1) >> 1) - first;
  uint64_t counter = static_cast<uint64_t>(first + 1) * kGolden + key;
  for (int64_t j = 0; j < pairs; ++j, counter += kGolden) {
    uint64_t z = counter;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    scratch[j] = z ^ (z >> 31);
  }
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the lower half comes first");
  const uint32_t* __restrict halves = reinterpret_cast<const uint32_t*>(scratch) + (start & 1);
  for (int64_t k = 0; k < n; ++k) out[k] = halves[k] >> 1;
}

// ---- magnitudes

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
      end = std::min<int64_t>(std::max<int64_t>(b.position + 1 - block_start, 0), kBlock * 64);
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

// masks.elect, then the base is added: into `out`.
struct Consensus {
  int32_t elect, normalize;
  float lambda;
};

class Merger {
 public:
  Merger(int n_parts, int64_t length)
      : length_(length), base_(length), total_(length), mixed_(length), share_(length), selected_(length),
        delta_(length * std::max(n_parts, 1)), done_(length * std::max(n_parts, 1)), draws_(length),
        ranks_(length), scratch_(length / 2 + 2) {}

  // `gather`: positions of single elements, else the block from `at` on.
  const float* operator()(int n_parts, const Part* parts, const Operand& base, int64_t start, int64_t at, int64_t n,
                          const Consensus& how, const Boundary* selection, int n_votes, const Operand* votes,
                          Found* found, bool& complete, const int64_t* gather) {
    fetch(base, nullptr, at, n, gather, start, base_.data());
    if (n_parts == 0) return base_.data();
    for (int i = 0; i < n_parts; ++i) fetch(parts[i].operand, base_.data(), at, n, gather, start, delta(i));
    if (selection != nullptr) select(n_parts, *selection, start + at, n, n_votes, votes, at, gather, start);
    for (int i = 0; i < n_parts; ++i) {
      const Part& part = parts[i];
      float* __restrict out = done(i);
      const float* __restrict d = delta(i);
      for (int64_t k = 0; k < n; ++k) out[k] = d[k] * part.weight;
      if (part.mask == kRanked) {
        if (gather != nullptr) {
          apply_ranked_at(part, gather, d, n, out);
        } else {
          apply_ranked(part, start + at, d, n, out);
          if (part.lower.bin >= 0) complete &= note_bin(part.lower.bin, start + at, d, n, found[2 * i]);
          if (part.upper.bin >= 0) complete &= note_bin(part.upper.bin, start + at, d, n, found[2 * i + 1]);
        }
      } else if (part.mask == kDrawn || part.mask == kDrawnByRank) {
        if (gather != nullptr) {
          for (int64_t k = 0; k < n; ++k) draw(part.key, gather[k], 1, scratch_.data(), draws_.data() + k);
        } else {
          draw(part.key, start + at, n, scratch_.data(), draws_.data());
        }
        if (part.mask == kDrawn) {
          const uint32_t* __restrict u = draws_.data();
          for (int64_t k = 0; k < n; ++k) out[k] *= u[k] < part.below ? 1.0f : 0.0f;
        } else {
          apply_drawn_by_rank(part, d, draws_.data(), n, ranker_, ranks_.data(), out);
        }
      }
    }
    return how.elect ? elected(n_parts, parts, how, n) : summed(n_parts, n);
  }

 private:
  float* delta(int i) { return delta_.data() + i * length_; }
  float* done(int i) { return done_.data() + i * length_; }

  static void fetch(const Operand& x, const float* base, int64_t at, int64_t n, const int64_t* gather, int64_t start,
                    float* out) {
    if (gather == nullptr) return load_delta(x, base, at, n, out);
    for (int64_t k = 0; k < n; ++k) load(x, gather[k] - start, 1, out + k);
    if (base != nullptr && !x.is_delta) {
      for (int64_t k = 0; k < n; ++k) out[k] -= base[k];
    }
  }

  // Positions whose variance lies before the cut; the others' task vectors become 0.
  void select(int n_parts, const Boundary& cut, int64_t position, int64_t n, int n_votes, const Operand* votes,
              int64_t at, const int64_t* gather, int64_t start) {
    votes_.resize(length_ * std::max(n_votes, 1));
    for (int i = 0; i < n_votes; ++i) {
      fetch(votes[i], base_.data(), at, n, gather, start, votes_.data() + i * length_);
    }
    variance(n_votes, votes_.data(), length_, n, mixed_.data(), share_.data());
    choose(cut, position, share_.data(), n, selected_.data());
    for (int i = 0; i < n_parts; ++i) {
      float* __restrict d = delta(i);
      for (int64_t k = 0; k < n; ++k) d[k] *= selected_[k];
    }
  }

  const float* summed(int n_parts, int64_t n) {
    float* __restrict total = total_.data();
    std::memcpy(total, done(0), n * sizeof(float));
    for (int i = 1; i < n_parts; ++i) {
      const float* __restrict part = done(i);
      for (int64_t k = 0; k < n; ++k) total[k] += part[k];
    }
    const float* __restrict base = base_.data();
    for (int64_t k = 0; k < n; ++k) total[k] += base[k];
    return total;
  }

  // The same as below for a known number of parts that vote as they are: all in registers.
  template <int N>
  const float* elected_few(const Part* parts, const Consensus& how, int64_t n) {
    float own[N];
    const float* rows[N];
    for (int i = 0; i < N; ++i) {
      own[i] = parts[i].share;
      rows[i] = done(i);
    }
    const float* __restrict base = base_.data();
    float* __restrict out = mixed_.data();
    const float lambda = how.lambda;
    const bool normalize = how.normalize;
    for (int64_t k = 0; k < n; ++k) {
      float total = rows[0][k];
      for (int i = 1; i < N; ++i) total += rows[i][k];
      const float sign = std::copysign(1.0f, total);
      float merged = 0.0f, share = 0.0f;
      for (int i = 0; i < N; ++i) {
        const float agreeing = rows[i][k] * sign;
        merged += agreeing < 0.0f ? 0.0f : agreeing;  // NaN is not less
        share += agreeing > 0.0f ? own[i] : 0.0f;
      }
      share = normalize && share != 0.0f ? share : 1.0f;
      merged = merged / share * lambda;
      out[k] = merged * sign + base[k];
    }
    return out;
  }

  const float* elected(int n_parts, const Part* parts, const Consensus& how, int64_t n) {
    bool plain = true;
    for (int i = 0; i < n_parts; ++i) plain &= !parts[i].has_vote;
    if (plain && n_parts == 1) return elected_few<1>(parts, how, n);
    if (plain && n_parts == 2) return elected_few<2>(parts, how, n);
    if (plain && n_parts == 3) return elected_few<3>(parts, how, n);
    if (plain && n_parts == 4) return elected_few<4>(parts, how, n);
    float* __restrict sign = total_.data();
    for (int i = 0; i < n_parts; ++i) {
      const float* __restrict d = delta(i);
      const float* __restrict part = done(i);
      const float vote = parts[i].vote;
      const bool own = parts[i].has_vote;
      if (i == 0) {
        for (int64_t k = 0; k < n; ++k) sign[k] = own ? d[k] * vote : part[k];
      } else {
        for (int64_t k = 0; k < n; ++k) sign[k] += own ? d[k] * vote : part[k];
      }
    }
    float* __restrict mixed = mixed_.data();
    float* __restrict share = share_.data();
    for (int64_t k = 0; k < n; ++k) {
      sign[k] = std::copysign(1.0f, sign[k]);
      mixed[k] = 0.0f;
      share[k] = 0.0f;
    }
    for (int i = 0; i < n_parts; ++i) {
      const float* __restrict part = done(i);
      const float own = parts[i].share;
      for (int64_t k = 0; k < n; ++k) {
        const float agreeing = part[k] * sign[k];
        mixed[k] += agreeing < 0.0f ? 0.0f : agreeing;  // NaN is not less
        share[k] += agreeing > 0.0f ? own : 0.0f;
      }
    }
    const float* __restrict base = base_.data();
    for (int64_t k = 0; k < n; ++k) {
      float merged = mixed[k];
      if (how.normalize) merged /= share[k] == 0.0f ? 1.0f : share[k];
      if (how.lambda != 1.0f) merged *= how.lambda;
      mixed[k] = merged * sign[k] + base[k];
    }
    return mixed;
  }

  int64_t length_;
  std::vector<float> base_, total_, mixed_, share_, selected_, delta_, done_, votes_;
  std::vector<uint32_t> draws_, ranks_;
  std::vector<uint64_t> scratch_;
  RowRanks ranker_;
};

}  // namespace

extern "C" {

int32_t evomerge_version() { return 1; }

// sum w_i x_i, or W_0 + sum w_i (x_i - W_0) where `base` is given. Returns 1 where a result is not finite.
int32_t evomerge_sum(int32_t n_ops, const Operand* ops, const float* weights, const Operand* base, int64_t count,
                     const Output* out) {
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
    bad |= store(total, *out, at, n);
  }
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

// group.masked. `row` > 0: whole rows of that many elements (kDrawnByRank). found: two for each part (lower, upper).
// Returns bit 0 where a result is not finite, bit 1 where `found` was too small.
int32_t evomerge_masked(int32_t n_parts, const Part* parts, const Operand* base, int64_t start, int64_t count,
                        int64_t row, int32_t elect, int32_t normalize, float lambda, const Boundary* selection,
                        int32_t n_votes, const Operand* votes, Found* found, const Output* out) {
  const int64_t length = row > 0 ? row : kBlock;
  Merger merge(n_parts, length);
  const Consensus how{elect, normalize, lambda};
  bool bad = false, complete = true;
  for (int64_t at = 0; at < count; at += length) {
    const int64_t n = std::min(length, count - at);
    const float* merged = merge(n_parts, parts, *base, start, at, n, how, selection, n_votes, votes, found, complete, nullptr);
    bad |= store(merged, *out, at, n);
  }
  return (bad ? 1 : 0) | (complete ? 0 : 2);
}

// The same for single elements, by their positions. Pointers are those of position `start`.
int32_t evomerge_masked_at(int32_t n_parts, const Part* parts, const Operand* base, int64_t start,
                           const int64_t* positions, int64_t count, int32_t elect, int32_t normalize, float lambda,
                           const Output* out) {
  Merger merge(n_parts, kBlock);
  const Consensus how{elect, normalize, lambda};
  bool bad = false, complete = true;
  for (int64_t at = 0; at < count; at += kBlock) {
    const int64_t n = std::min(kBlock, count - at);
    const float* merged =
        merge(n_parts, parts, *base, start, 0, n, how, nullptr, 0, nullptr, nullptr, complete, positions + at);
    for (int64_t k = 0; k < n; ++k) bad |= store(merged + k, *out, positions[at + k] - start, 1);
  }
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
