// Transposition of 32-bit words and of bits, 32 rows at a time.
#pragma once

#include "cpu/simd.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

#if defined(__AVX2__)

// Four words each of row r and of row r + 4, side by side, so that the loads do the exchange between the halves.
__m256i load_rows(const std::uint8_t* source, std::int64_t stride, int r) {
  const auto* low = reinterpret_cast<const __m128i*>(source + r * stride);
  const auto* high = reinterpret_cast<const __m128i*>(source + (r + 4) * stride);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)), _mm_loadu_si128(high), 1);
}

void store_words(std::uint32_t* address, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(address), v); }

// target[c][r] = word c of row r, for r and c below 8. Source rows are stride bytes apart, target rows 32 words.
void transpose_eight(const std::uint8_t* source, std::int64_t stride, std::uint32_t* target) {
  for (int first = 0; first < 8; first += 4) {
    const std::uint8_t* from = source + 4 * first;
    const __m256i a = load_rows(from, stride, 0), b = load_rows(from, stride, 1);
    const __m256i c = load_rows(from, stride, 2), d = load_rows(from, stride, 3);
    const __m256i ab_low = _mm256_unpacklo_epi32(a, b), ab_high = _mm256_unpackhi_epi32(a, b);
    const __m256i cd_low = _mm256_unpacklo_epi32(c, d), cd_high = _mm256_unpackhi_epi32(c, d);
    store_words(target + 32 * first, _mm256_unpacklo_epi64(ab_low, cd_low));
    store_words(target + 32 * first + 32, _mm256_unpackhi_epi64(ab_low, cd_low));
    store_words(target + 32 * first + 64, _mm256_unpacklo_epi64(ab_high, cd_high));
    store_words(target + 32 * first + 96, _mm256_unpackhi_epi64(ab_high, cd_high));
  }
}

#else

void transpose_eight(const std::uint8_t* source, std::int64_t stride, std::uint32_t* target) {
  for (int r = 0; r < 8; ++r) {
    for (int c = 0; c < 8; ++c) std::memcpy(target + 32 * c + r, source + r * stride + 4 * c, 4);
  }
}

#endif

// target[c][r] = word c of row r of the source, for r below 32 and c below ceil(bytes / 4). Rows are stride bytes apart
// and bytes long; what does not exist of a last word, and rows from `rows` on, are zero.
[[maybe_unused]] void transpose_words(const std::uint8_t* source, std::int64_t stride, std::int64_t rows,
                                      std::int64_t bytes, std::uint32_t* target) {
  const std::int64_t words = (bytes + 3) / 4;
  const std::int64_t whole = bytes / 4;
  if (rows < 32) std::memset(target, 0, static_cast<std::size_t>(words * 32 * 4));
  for (std::int64_t r = 0; r < rows; r += 8) {
    std::int64_t done = 0;
    if (r + 8 <= rows && whole >= 8) {
      for (; done < whole; done += 8) {
        // The last eight words may be some of those before once more.
        const std::int64_t c = done + 8 <= whole ? done : whole - 8;
        transpose_eight(source + r * stride + 4 * c, stride, target + 32 * c + r);
      }
      done = whole;
    }
    for (std::int64_t i = r; i < rows && i < r + 8; ++i) {
      for (std::int64_t c = done; c < words; ++c) {
        const std::int64_t left = bytes - 4 * c;
        std::uint32_t word = 0;
        std::memcpy(&word, source + i * stride + 4 * c, left < 4 ? static_cast<std::size_t>(left) : 4);
        target[32 * c + i] = word;
      }
    }
  }
}

// Bit r of target[k] = bit k of word r, for 32 words.
#if defined(__AVX2__)

[[maybe_unused]] void transpose_bits(const std::uint32_t* words, std::uint32_t* target) {
  const __m256i bytes_together = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const auto quad = [=](int i) {  // words 8 * i up to 8 * i + 8: in each half, byte b of four words is word b
    return _mm256_shuffle_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + 8 * i)), bytes_together);
  };
  const __m256i a = quad(0), b = quad(1), c = quad(2), d = quad(3);
  const __m256i ab_low = _mm256_unpacklo_epi32(a, b), ab_high = _mm256_unpackhi_epi32(a, b);
  const __m256i cd_low = _mm256_unpacklo_epi32(c, d), cd_high = _mm256_unpackhi_epi32(c, d);
  const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  __m256i byte[4] = {_mm256_unpacklo_epi64(ab_low, cd_low), _mm256_unpackhi_epi64(ab_low, cd_low),
                     _mm256_unpacklo_epi64(ab_high, cd_high), _mm256_unpackhi_epi64(ab_high, cd_high)};
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    __m256i rows = _mm256_permutevar8x32_epi32(byte[j], in_order);
#pragma GCC unroll 8
    for (int bit = 7; bit >= 0; --bit) {
      target[8 * j + bit] = static_cast<std::uint32_t>(_mm256_movemask_epi8(rows));
      rows = _mm256_add_epi8(rows, rows);
    }
  }
}

#else

// Exchanges ever smaller off-diagonal blocks (Warren, Hacker's Delight, 7-3).
[[maybe_unused]] void transpose_bits(const std::uint32_t* words, std::uint32_t* target) {
  std::memcpy(target, words, 32 * sizeof *words);
  std::uint32_t mask = 0x0000ffff;
  for (int size = 16; size != 0; size >>= 1, mask ^= mask << size) {
    for (int i = 0; i < 32; i = ((i | size) + 1) & ~size) {
      const std::uint32_t moved = ((target[i] >> size) ^ target[i | size]) & mask;
      target[i] ^= moved << size;
      target[i | size] ^= moved;
    }
  }
}

#endif

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
