#include "count_bits.h"

#include "bits.h"
#include "runtime/cpu.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace cad_fast::CAD_FAST_TARGET {
namespace {

#if defined(__POPCNT__)

std::int64_t count_of(std::uint64_t v) { return __builtin_popcountll(v); }

#else

std::int64_t count_of(std::uint64_t v) {
  v -= (v >> 1) & 0x5555555555555555;
  v = (v & 0x3333333333333333) + ((v >> 2) & 0x3333333333333333);
  v = (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0f;
  return static_cast<std::int64_t>((v * 0x0101010101010101) >> 56);
}

#endif

std::int64_t count_scalar(const std::uint8_t* words, std::int64_t count) {
  std::int64_t total = 0;
  std::int64_t j = 0;
  for (; j + 2 <= count; j += 2) {
    std::uint64_t two;
    std::memcpy(&two, words + 4 * j, sizeof two);
    total += count_of(two);
  }
  return j < count ? total + count_of(load_word(words + 4 * j)) : total;
}

#if defined(__AVX512F__)

// Not part of the avx512 target: the first CPUs with AVX-512 cannot count bits in vectors.
__attribute__((target("avx512vpopcntdq"))) std::int64_t count_vector(const std::uint8_t* words, std::int64_t count) {
  __m512i totals = _mm512_setzero_si512();
  std::int64_t j = 0;
  for (; j + 16 <= count; j += 16) {
    totals = _mm512_add_epi64(totals, _mm512_popcnt_epi64(_mm512_loadu_si512(words + 4 * j)));
  }
  const __mmask16 rest = static_cast<__mmask16>((1u << (count - j)) - 1);
  const __m512i tail = _mm512_maskz_loadu_epi32(rest, words + 4 * j);
  std::int64_t lanes[8];
  _mm512_storeu_si512(lanes, _mm512_add_epi64(totals, _mm512_popcnt_epi64(tail)));
  std::int64_t total = 0;
  for (const std::int64_t lane : lanes) total += lane;
  return total;
}

#endif

}  // namespace

std::int64_t count_bits(const std::uint8_t* words, std::int64_t count) noexcept {
#if defined(__AVX512F__)
  if (cpu_has(Feature::avx512vpopcntdq)) return count_vector(words, count);
#endif
  return count_scalar(words, count);
}

}  // namespace cad_fast::CAD_FAST_TARGET
