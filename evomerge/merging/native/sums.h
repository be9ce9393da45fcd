// Weighted sums of a few bfloat16 tensors into a bfloat16 one.
#pragma once

#include <algorithm>
#include <cstdint>

#include "few.h"
#include "numbers.h"
#include "stream.h"
#include "structs.h"

namespace {

// kDelta: W_0 + sum w_i (x_i - W_0), else sum w_i x_i. Returns whether a result is not finite.
template <int N, bool kDelta>
bool sum_bf16(const Operand* ops, const float* weights, const Operand* base, int64_t count, const Output& out) {
  const uint16_t* in[N + kDelta];
  float w[N];
  for (int i = 0; i < N; ++i) {
    in[i] = bf16_of(ops[i]);
    w[i] = weights[i];
  }
  if (kDelta) in[N + kDelta - 1] = bf16_of(*base);
  uint16_t* to = static_cast<uint16_t*>(out.data);
  uint32_t top = 0;
  alignas(64) uint16_t block[kBlock];
  for (int64_t at = 0; at < count; at += kBlock) {
    const int64_t n = std::min(kBlock, count - at);
    each(in, at, n, [&](int64_t k) {
      const float origin = kDelta ? widened(in[N + kDelta - 1][at + k]) : 0.0f;
      float total = 0.0f;
      for (int i = 0; i < N; ++i) {
        float x = widened(in[i][at + k]);
        if (kDelta) x -= origin;
        total = i == 0 ? x * w[i] : total + x * w[i];
      }
      if (kDelta) total += origin;
      top = std::max(top, bits_of(total) & kNoSign);
      block[k] = rounded_bf16(bits_of(total));
    });
    put(to + at, block, n * sizeof(uint16_t), count);
  }
  return top >= kNotFinite;
}

using SumFew = bool (*)(const Operand*, const float*, const Operand*, int64_t, const Output&);

// The loop for these types and numbers, or null.
SumFew sum_few(int32_t n_ops, const Operand* ops, const Operand* base, const Output& out) {
  if (!all_bf16(n_ops, [&](int i) -> const Operand& { return ops[i]; }, base, out)) return nullptr;
  static constexpr SumFew plain[] = {sum_bf16<1, false>, sum_bf16<2, false>, sum_bf16<3, false>, sum_bf16<4, false>};
  static constexpr SumFew deltas[] = {sum_bf16<1, true>, sum_bf16<2, true>, sum_bf16<3, true>, sum_bf16<4, true>};
  return base != nullptr ? deltas[n_ops - 1] : plain[n_ops - 1];
}

}  // namespace
