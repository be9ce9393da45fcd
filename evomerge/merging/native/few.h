// What kernels of a few bfloat16 tensors share. Most merges are of this kind; with everything in registers nothing but
// memory takes time. Other types and numbers go block by block through the first cache.
//
// Not for results with NaN or infinities: those are noticed (`kNotFinite`), and the general kernel is asked again.
#pragma once

#include <algorithm>
#include <cstdint>

#include "numbers.h"
#include "structs.h"
#include "values.h"

namespace {

constexpr int kFew = 4;

// From this magnitude on a float32 is rounded to infinity in bfloat16, or is not a number.
constexpr uint32_t kNotFinite = 0x7F7F8000u;

inline const uint16_t* bf16_of(const Operand& x) { return static_cast<const uint16_t*>(x.data); }

inline float widened(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }

// To bfloat16, to nearest even.
inline uint16_t rounded_bf16(uint32_t bits) {
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// Whether `n` operands, `base` where it is given and the result are bfloat16, and nothing is worked out before.
template <typename Of>
bool all_bf16(int n, Of operand, const Operand* base, const Output& out) {
  if (n < 1 || n > kFew || out.dtype != kBF16 || out.rounded != kBF16) return false;
  if (base != nullptr && base->dtype != kBF16) return false;
  for (int i = 0; i < n; ++i) {
    const Operand& x = operand(i);
    if (x.dtype != kBF16 || (base != nullptr && x.is_delta)) return false;
  }
  return true;
}

// one(k) for the n elements of a block, while what follows of each input is asked for ahead, line by line: all at once
// would wait for each other, and the processor's own way ends at each page.
template <int N, typename One>
inline void each(const uint16_t* const (&in)[N], int64_t at, int64_t n, One one) {
  int64_t line = 0;
  for (; line + kLine <= n; line += kLine) {
    for (int i = 0; i < N; ++i) __builtin_prefetch(in[i] + at + line + kAhead);
#pragma GCC ivdep
    for (int64_t k = line; k < line + kLine; ++k) one(k);
  }
  for (int64_t k = line; k < n; ++k) one(k);
}

}  // namespace
