// Results that are written past the caches: they are not read again soon, and a line that is written whole need not be
// fetched first. A copy of memory does the same, so without it a merge could not come near its speed.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

// Results of fewer elements stay in the caches, where a small model is read from.
constexpr int64_t kStreamed = 1 << 18;

inline void stream(void* to, const void* from, int64_t bytes) {
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(out) % 64 == 0) {
    for (; bytes >= 64; bytes -= 64, in += 64, out += 64) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(out), _mm512_loadu_si512(in));
    }
  }
#elif defined(__AVX2__)
  if (reinterpret_cast<uintptr_t>(out) % 32 == 0) {
    for (; bytes >= 32; bytes -= 32, in += 32, out += 32) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(out), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
    }
  }
#endif
  std::memcpy(out, in, bytes);
}

// A block of a result of `count` elements.
inline void put(void* to, const void* from, int64_t bytes, int64_t count) {
  if (count >= kStreamed) {
    stream(to, from, bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

// After the last `stream` of a call: other threads see what was written.
inline void streamed() {
#if defined(__AVX512F__) || defined(__AVX2__)
  _mm_sfence();
#endif
}

}  // namespace
