// Types of numbers in memory, all worked with as float32.
// Float16 in memory: the compiler's own where it has one (GCC from version 12 on x86), else the same in whole numbers.
// EVOMERGE_SOFT_FLOAT16 takes the second everywhere, for tests.
#pragma once

#include <cstdint>
#include <cstring>

#include "structs.h"

namespace {

constexpr uint32_t kNoSign = 0x7FFFFFFFu;

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

#if defined(__FLT16_MAX__) && !defined(EVOMERGE_SOFT_FLOAT16)

using Half = _Float16;

#else

struct Half {
  uint16_t bits;

  // To nearest even.
  explicit Half(float x) {
    const uint32_t magnitude = bits_of(x) & kNoSign;
    uint32_t found;
    if (magnitude > 0x7F800000u) {
      found = 0x7E00u;  // NaN
    } else if (magnitude >= 0x477FF000u) {
      found = 0x7C00u;  // from 65520 on the nearest is infinity
    } else if (magnitude < 0x38800000u) {
      // Below 2^-14 it is a multiple of 2^-24, and so are floats from 0.5 to 1: the sum is rounded as it must be.
      found = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u;
    } else {
      found = (magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
    }
    bits = static_cast<uint16_t>(found | (bits_of(x) >> 16 & 0x8000u));
  }

  explicit operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16, magnitude = bits & 0x7FFFu;
    if (magnitude >= 0x7C00u) return float_of(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
    const float value = magnitude < 0x400u ? static_cast<float>(magnitude) * 0x1p-24f
                                           : float_of((magnitude << 13) + 0x38000000u);
    return float_of(sign | bits_of(value));
  }
};

#endif

}  // namespace
