// Masked task vectors become one: masks.py and group.masked.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "draws.h"
#include "magnitudes.h"
#include "rows.h"
#include "structs.h"
#include "values.h"

namespace {

// masks.elect, then the base is added: into `out`.
struct Consensus {
  int32_t elect, normalize;
  float lambda;
  float least;  // shares of no more than this are 0
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
    const float lambda = how.lambda, least = how.least;
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
      share = normalize && std::fabs(share) > least ? share : 1.0f;
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
      if (how.normalize) merged /= std::fabs(share[k]) > how.least ? share[k] : 1.0f;
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
