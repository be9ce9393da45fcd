// Random numbers by position: draws.py.
#pragma once

#include <cstdint>

namespace {

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

}  // namespace
