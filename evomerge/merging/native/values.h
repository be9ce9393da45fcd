// Values of an operand in, results out, block by block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "numbers.h"
#include "stream.h"
#include "structs.h"

namespace {

// What is read on is asked for this many elements ahead, one line (64 bytes) of bfloat16 at a time. (Behind the end it
// asks for nothing that is there.)
constexpr int64_t kAhead = 1024;
constexpr int64_t kLine = 32;

// out[k] = one(in[k]).
template <typename One>
inline void each_bf16(const uint16_t* __restrict in, int64_t n, float* __restrict out, One one) {
  int64_t line = 0;
  for (; line + kLine <= n; line += kLine) {
    __builtin_prefetch(in + line + kAhead);
    for (int64_t k = line; k < line + kLine; ++k) out[k] = one(k, float_of(static_cast<uint32_t>(in[k]) << 16));
  }
  for (int64_t k = line; k < n; ++k) out[k] = one(k, float_of(static_cast<uint32_t>(in[k]) << 16));
}

void load(const Operand& x, int64_t at, int64_t n, float* __restrict out) {
  if (x.dtype == kF32) {
    std::memcpy(out, static_cast<const float*>(x.data) + at, n * sizeof(float));
  } else if (x.dtype == kBF16) {
    each_bf16(static_cast<const uint16_t*>(x.data) + at, n, out, [](int64_t, float own) { return own; });
  } else {
    const Half* __restrict in = static_cast<const Half*>(x.data) + at;
    for (int64_t k = 0; k < n; ++k) out[k] = static_cast<float>(in[k]);
  }
}

// Writes a block of a result of `count` elements; returns whether a value is not finite.
bool store(const float* __restrict in, const Output& out, int64_t at, int64_t n, int64_t count) {
  uint32_t bad = 0;
  if (out.rounded == kF32) {
    float* __restrict to = static_cast<float*>(out.data) + at;
    for (int64_t k = 0; k < n; ++k) {
      bad |= (bits_of(in[k]) & 0x7F800000u) == 0x7F800000u;
      to[k] = in[k];
    }
  } else if (out.rounded == kBF16) {
    if (out.dtype == kBF16) {
      uint16_t* to = static_cast<uint16_t*>(out.data) + at;
      for (int64_t first = 0; first < n; first += kBlock) {  // rows may be longer than a block
        alignas(64) uint16_t block[kBlock];
        const int64_t part = std::min(kBlock, n - first);
        const float* __restrict from = in + first;
        for (int64_t k = 0; k < part; ++k) {
          const uint16_t x = bf16(bits_of(from[k]));
          bad |= (x & 0x7F80u) == 0x7F80u;
          block[k] = x;
        }
        put(to + first, block, part * sizeof(uint16_t), count);
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
      const Half x = static_cast<Half>(in[k]);
      const float back = static_cast<float>(x);
      bad |= (bits_of(back) & 0x7F800000u) == 0x7F800000u;
      if (out.dtype == kF16) {
        static_cast<Half*>(out.data)[at + k] = x;
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
    each_bf16(static_cast<const uint16_t*>(x.data) + at, n, out, [=](int64_t k, float own) { return own - base[k]; });
  } else if (x.dtype == kF32) {
    const float* __restrict in = static_cast<const float*>(x.data) + at;
    for (int64_t k = 0; k < n; ++k) out[k] = in[k] - base[k];
  } else {
    const Half* __restrict in = static_cast<const Half*>(x.data) + at;
    for (int64_t k = 0; k < n; ++k) out[k] = static_cast<float>(in[k]) - base[k];
  }
}

}  // namespace
