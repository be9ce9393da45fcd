// Weighted sums of a few bfloat16 tensors into a bfloat16 one, which most merges are: one loop with everything in
// registers, so that nothing but memory takes time. Other types go block by block (evomerge_sum).
#pragma once

#include <algorithm>
#include <cstdint>

#include "numbers.h"
#include "stream.h"
#include "structs.h"

namespace {

constexpr int kFew = 4;

// kDelta: W_0 + sum w_i (x_i - W_0), else sum w_i x_i. Returns whether a result is not finite.
template <int N, bool kDelta>
bool sum_bf16(const Operand* ops, const float* weights, const Operand* base, int64_t count, const Output& out) {
  const uint16_t* in[N];
  float w[N];
  for (int i = 0; i < N; ++i) {
    in[i] = static_cast<const uint16_t*>(ops[i].data);
    w[i] = weights[i];
  }
  const uint16_t* zero = kDelta ? static_cast<const uint16_t*>(base->data) : nullptr;
  uint16_t* to = static_cast<uint16_t*>(out.data);
  uint32_t bad = 0;
  alignas(64) uint16_t block[kBlock];
  for (int64_t at = 0; at < count; at += kBlock) {
    const int64_t n = std::min(kBlock, count - at);
#pragma GCC ivdep
    for (int64_t k = 0; k < n; ++k) {
      const float origin = kDelta ? float_of(static_cast<uint32_t>(zero[at + k]) << 16) : 0.0f;
      float total = 0.0f;
      for (int i = 0; i < N; ++i) {
        float x = float_of(static_cast<uint32_t>(in[i][at + k]) << 16);
        if (kDelta) x -= origin;
        total = i == 0 ? x * w[i] : total + x * w[i];
      }
      if (kDelta) total += origin;
      const uint16_t rounded = bf16(bits_of(total));
      bad |= (rounded & 0x7F80u) == 0x7F80u;
      block[k] = rounded;
    }
    put(to + at, block, n * sizeof(uint16_t), count);
  }
  streamed();
  return bad != 0;
}

using SumFew = bool (*)(const Operand*, const float*, const Operand*, int64_t, const Output&);

// The loop for these types and numbers, or null.
SumFew sum_few(int32_t n_ops, const Operand* ops, const Operand* base, const Output& out) {
  if (n_ops < 1 || n_ops > kFew || out.dtype != kBF16 || out.rounded != kBF16) return nullptr;
  if (base != nullptr && base->dtype != kBF16) return nullptr;
  for (int i = 0; i < n_ops; ++i) {
    if (ops[i].dtype != kBF16 || (base != nullptr && ops[i].is_delta)) return nullptr;
  }
  static constexpr SumFew plain[] = {sum_bf16<1, false>, sum_bf16<2, false>, sum_bf16<3, false>, sum_bf16<4, false>};
  static constexpr SumFew deltas[] = {sum_bf16<1, true>, sum_bf16<2, true>, sum_bf16<3, true>, sum_bf16<4, true>};
  return base != nullptr ? deltas[n_ops - 1] : plain[n_ops - 1];
}

}  // namespace
