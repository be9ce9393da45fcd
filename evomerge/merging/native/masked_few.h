// Masked task vectors of a few bfloat16 tensors into a bfloat16 one: what merge.h does, bit for bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "draws.h"
#include "few.h"
#include "magnitudes.h"
#include "numbers.h"
#include "stream.h"
#include "structs.h"

namespace {

enum class How { kSum, kElect, kNormalize };

// Magnitude bits from which on an element lies before a boundary, in a block that begins at `position`; makes the block
// shorter where that is not the same for all of it.
inline uint32_t threshold(const Boundary& b, int64_t position, int64_t& n) {
  if (b.bin >= 0) return (static_cast<uint32_t>(b.bin) + 1) << 16;
  if (b.bits < 0) return 0;  // everything lies before it
  const int64_t end = b.position + 1 - position;
  if (end <= 0) return static_cast<uint32_t>(b.bits) + 1;
  n = std::min(n, end);
  return static_cast<uint32_t>(b.bits);
}

// kMask is that of all parts, or of those that have one. Returns what evomerge_masked does.
template <int N, MaskKind kMask, How kHow>
int32_t masked_bf16(const Part* parts, const Operand& base, int64_t start, int64_t count, float lambda, float least,
                    Found* found, const Output& out) {
  const uint16_t* in[N + 1];
  float weight[N], share[N];
  uint32_t low[N], span[N], below[N];  // kept: low <= bits < low + span; drawn < below
  for (int i = 0; i < N; ++i) {
    in[i] = bf16_of(parts[i].operand);
    weight[i] = parts[i].weight;
    share[i] = parts[i].share;
    low[i] = 0;
    span[i] = kNoSign + 1;
    below[i] = parts[i].mask == kDrawn ? parts[i].below : kNoSign + 1;
  }
  in[N] = bf16_of(base);
  uint16_t* to = static_cast<uint16_t*>(out.data);
  uint32_t top = 0;
  bool complete = true;
  alignas(64) uint16_t block[kBlock];
  alignas(64) float delta[N][kBlock];
  alignas(64) uint32_t drawn[N][kBlock];
  alignas(64) uint64_t scratch[kBlock / 2 + 2];
  std::memset(drawn, 0, sizeof(drawn));  // parts without a mask keep everything
  for (int64_t at = 0, n = 0; at < count; at += n) {
    n = std::min(kBlock - at % kBlock, count - at);
    for (int i = 0; i < N; ++i) {
      if (kMask == kRanked && parts[i].mask == kRanked) {
        low[i] = threshold(parts[i].lower, start + at, n);
        span[i] = threshold(parts[i].upper, start + at, n) - low[i];
      } else if (kMask == kDrawn && parts[i].mask == kDrawn) {
        draw(parts[i].key, start + at, n, scratch, drawn[i]);
      }
    }
    each(in, at, n, [&](int64_t k) {
      const float origin = widened(in[N][at + k]);
      float own[N];
      for (int i = 0; i < N; ++i) {
        const float d = widened(in[i][at + k]) - origin;
        own[i] = d * weight[i];
        if (kMask == kRanked) {
          delta[i][k] = d;
          own[i] *= (bits_of(d) & kNoSign) - low[i] < span[i] ? 1.0f : 0.0f;
        } else if (kMask == kDrawn) {
          own[i] *= drawn[i][k] < below[i] ? 1.0f : 0.0f;
        }
      }
      float total = own[0];
      for (int i = 1; i < N; ++i) total += own[i];
      if (kHow != How::kSum) {
        top = std::max(top, bits_of(total) & kNoSign);
        const uint32_t sign = bits_of(total) & ~kNoSign;
        float merged = 0.0f, counted = 0.0f;
        for (int i = 0; i < N; ++i) {
          const float agreeing = float_of(bits_of(own[i]) ^ sign);
          merged += agreeing > 0.0f ? agreeing : 0.0f;
          if (kHow == How::kNormalize) counted += agreeing > 0.0f ? share[i] : 0.0f;
        }
        if (kHow == How::kNormalize) merged /= std::fabs(counted) > least ? counted : 1.0f;
        total = float_of(bits_of(merged * lambda) ^ sign);
      }
      total += origin;
      top = std::max(top, bits_of(total) & kNoSign);
      block[k] = rounded_bf16(bits_of(total));
    });
    put(to + at, block, n * sizeof(uint16_t), count);
    for (int i = 0; kMask == kRanked && i < N; ++i) {
      const Part& p = parts[i];
      if (p.mask != kRanked) continue;
      if (p.lower.bin >= 0) complete &= note_bin(p.lower.bin, start + at, delta[i], n, found[2 * i]);
      if (p.upper.bin >= 0) complete &= note_bin(p.upper.bin, start + at, delta[i], n, found[2 * i + 1]);
    }
  }
  return (top >= kNotFinite ? 1 : 0) | (complete ? 0 : 2);
}

using MaskedFew = int32_t (*)(const Part*, const Operand&, int64_t, int64_t, float, float, Found*, const Output&);

template <MaskKind kMask, How kHow>
MaskedFew masked_of(int n) {
  static constexpr MaskedFew loops[] = {masked_bf16<1, kMask, kHow>, masked_bf16<2, kMask, kHow>,
                                        masked_bf16<3, kMask, kHow>, masked_bf16<4, kMask, kHow>};
  return loops[n - 1];
}

template <MaskKind kMask>
MaskedFew masked_of(int n, bool elect, bool normalize) {
  if (!elect) return masked_of<kMask, How::kSum>(n);
  return normalize ? masked_of<kMask, How::kNormalize>(n) : masked_of<kMask, How::kElect>(n);
}

// The loop for these types and masks, or null.
MaskedFew masked_few(int32_t n_parts, const Part* parts, const Operand& base, bool elect, bool normalize,
                     const Output& out) {
  if (!all_bf16(n_parts, [&](int i) -> const Operand& { return parts[i].operand; }, &base, out)) return nullptr;
  int32_t mask = kAll;
  for (int i = 0; i < n_parts; ++i) {
    if (parts[i].has_vote && elect) return nullptr;
    if (parts[i].mask != kAll && mask != kAll && mask != parts[i].mask) return nullptr;
    if (parts[i].mask != kAll) mask = parts[i].mask;
  }
  if (mask == kAll) return masked_of<kAll>(n_parts, elect, normalize);
  if (mask == kRanked) return masked_of<kRanked>(n_parts, elect, normalize);
  if (mask == kDrawn) return masked_of<kDrawn>(n_parts, elect, normalize);
  return nullptr;
}

}  // namespace
