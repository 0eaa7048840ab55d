// Transposition of 32-bit words and of bits, 32 rows at a time.
#pragma once

#include "cpu/simd.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

#if defined(__AVX2__)

// The first `count` words (4 at most) at an address, zero behind them.
__m128i load_words(const std::uint8_t* address, int count) {
  if (count == 4) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(address));
  const __m128i there = _mm_cmpgt_epi32(_mm_set1_epi32(count), _mm_setr_epi32(0, 1, 2, 3));
  return _mm_maskload_epi32(reinterpret_cast<const int*>(address), there);
}

// Words of row r and of row r + 4, side by side, so that the loads do the exchange between the halves.
__m256i load_rows(const std::uint8_t* source, std::int64_t stride, int r, int count) {
  const __m128i low = load_words(source + r * stride, count);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), load_words(source + (r + 4) * stride, count), 1);
}

// target[c][r] = word c of row r, for r below 8 and c below count (4 at most). Rows of the source are stride bytes apart,
// of the target 32 words.
void transpose_eight_rows(const std::uint8_t* source, std::int64_t stride, int count, std::uint32_t* target) {
  const __m256i a = load_rows(source, stride, 0, count), b = load_rows(source, stride, 1, count);
  const __m256i c = load_rows(source, stride, 2, count), d = load_rows(source, stride, 3, count);
  const __m256i ab_low = _mm256_unpacklo_epi32(a, b), ab_high = _mm256_unpackhi_epi32(a, b);
  const __m256i cd_low = _mm256_unpacklo_epi32(c, d), cd_high = _mm256_unpackhi_epi32(c, d);
  const __m256i words[4] = {_mm256_unpacklo_epi64(ab_low, cd_low), _mm256_unpackhi_epi64(ab_low, cd_low),
                            _mm256_unpacklo_epi64(ab_high, cd_high), _mm256_unpackhi_epi64(ab_high, cd_high)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if (i < count) _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + 32 * i), words[i]);
  }
}

#else

void transpose_eight_rows(const std::uint8_t* source, std::int64_t stride, int count, std::uint32_t* target) {
  for (int r = 0; r < 8; ++r) {
    for (int c = 0; c < count; ++c) std::memcpy(target + 32 * c + r, source + r * stride + 4 * c, 4);
  }
}

#endif

#if defined(__AVX512F__)

// Word c of row r becomes word r of row c.
__attribute__((always_inline)) inline void transpose_sixteen(__m512i (&row)[16]) {
  __m512i pair[16], quad[16], half[16];
#pragma GCC unroll 8
  for (int r = 0; r < 16; r += 2) {
    pair[r] = _mm512_unpacklo_epi32(row[r], row[r + 1]);
    pair[r + 1] = _mm512_unpackhi_epi32(row[r], row[r + 1]);
  }
  // quad[4 * i + c]: of each quarter, column c of rows 4 * i up to 4 * i + 4.
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    quad[i] = _mm512_unpacklo_epi64(pair[i], pair[i + 2]);
    quad[i + 1] = _mm512_unpackhi_epi64(pair[i], pair[i + 2]);
    quad[i + 2] = _mm512_unpacklo_epi64(pair[i + 1], pair[i + 3]);
    quad[i + 3] = _mm512_unpackhi_epi64(pair[i + 1], pair[i + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    half[c] = _mm512_shuffle_i32x4(quad[c], quad[4 + c], 0x88);
    half[4 + c] = _mm512_shuffle_i32x4(quad[c], quad[4 + c], 0xdd);
    half[8 + c] = _mm512_shuffle_i32x4(quad[8 + c], quad[12 + c], 0x88);
    half[12 + c] = _mm512_shuffle_i32x4(quad[8 + c], quad[12 + c], 0xdd);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    row[c] = _mm512_shuffle_i32x4(half[c], half[8 + c], 0x88);
    row[4 + c] = _mm512_shuffle_i32x4(half[4 + c], half[12 + c], 0x88);
    row[8 + c] = _mm512_shuffle_i32x4(half[c], half[8 + c], 0xdd);
    row[12 + c] = _mm512_shuffle_i32x4(half[4 + c], half[12 + c], 0xdd);
  }
}

// target[c][r] = word c of row r, for r below 16 and c below count (16 at most): whole cache lines of the source at a time.
void transpose_sixteen_rows(const std::uint8_t* source, std::int64_t stride, int count, std::uint32_t* target) {
  const auto there = static_cast<__mmask16>((1u << count) - 1);
  __m512i row[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) row[r] = _mm512_maskz_loadu_epi32(there, source + r * stride);
  transpose_sixteen(row);
#pragma GCC unroll 16
  for (int c = 0; c < 16; ++c) {
    if (c < count) _mm512_storeu_si512(target + 32 * c, row[c]);
  }
}

#endif

// target[c][r] = word c of row r of the source, for r below 32 and c below ceil(bytes / 4). Rows are stride bytes apart
// and bytes long; what does not exist of a last word, and rows from `rows` on, are zero.
[[maybe_unused]] void transpose_words(const std::uint8_t* source, std::int64_t stride, std::int64_t rows,
                                      std::int64_t bytes, std::uint32_t* target) {
  const std::int64_t words = (bytes + 3) / 4, whole = bytes / 4;
  if (rows < 32) std::memset(target, 0, static_cast<std::size_t>(words * 32 * 4));
#if defined(__AVX512F__)
  if (rows == 32 && whole == words) {
    for (std::int64_t c = 0; c < words; c += 16) {
      const int count = words - c < 16 ? static_cast<int>(words - c) : 16;
      transpose_sixteen_rows(source + 4 * c, stride, count, target + 32 * c);
      transpose_sixteen_rows(source + 16 * stride + 4 * c, stride, count, target + 32 * c + 16);
    }
    return;
  }
#endif
  for (std::int64_t r = 0; r < rows; r += 8) {
    const std::int64_t together = r + 8 <= rows ? whole : 0;
    for (std::int64_t c = 0; c < together; c += 4) {
      const int count = together - c < 4 ? static_cast<int>(together - c) : 4;
      transpose_eight_rows(source + r * stride + 4 * c, stride, count, target + 32 * c + r);
    }
    for (std::int64_t i = r; i < rows && i < r + 8; ++i) {
      for (std::int64_t c = together; c < words; ++c) {
        const std::int64_t left = bytes - 4 * c;
        std::uint32_t word = 0;
        std::memcpy(&word, source + i * stride + 4 * c, left < 4 ? static_cast<std::size_t>(left) : 4);
        target[32 * c + i] = word;
      }
    }
  }
}

// Bit r of target[k] = bit k of word r, for 32 words.
#if defined(__AVX512VBMI__) && defined(__GFNI__)

// Blocks of 8 x 8 bits: their bytes are brought together, each block is turned by a product with the unit matrix, and
// its bytes go where they belong.
[[maybe_unused]] void transpose_bits(const std::uint32_t* words, std::uint32_t* target) {
  // Of block (i, j), byte 7 - t is byte j of word 8 * i + t: the product takes the rows of a matrix from the last on.
  alignas(64) static constexpr auto gather = [] {
    struct { std::uint8_t byte[2][64]; } order{};
    for (int q = 0; q < 16; ++q) {
      for (int t = 0; t < 8; ++t) order.byte[q / 8][q % 8 * 8 + 7 - t] = 4 * (8 * (q % 4) + t) + q / 4;
    }
    return order;
  }();
  // Byte i of word 8 * j + m is byte m of block (i, j).
  alignas(64) static constexpr auto scatter = [] {
    struct { std::uint8_t byte[64]; } order{};
    for (int k = 0; k < 16; ++k) {
      for (int i = 0; i < 4; ++i) order.byte[4 * k + i] = 8 * (k / 8 * 4 + i) + k % 8;
    }
    return order;
  }();
  const __m512i low = _mm512_loadu_si512(words), high = _mm512_loadu_si512(words + 16);
  const __m512i unit = _mm512_set1_epi64(0x8040201008040201);
  const __m512i places = _mm512_load_si512(scatter.byte);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m512i blocks = _mm512_permutex2var_epi8(low, _mm512_load_si512(gather.byte[half]), high);
    const __m512i turned = _mm512_gf2p8affine_epi64_epi8(unit, blocks, 0);
    _mm512_storeu_si512(target + 16 * half, _mm512_permutexvar_epi8(places, turned));
  }
}

// Bit 2 * r + e of target[s] = bit 2 * s + e of word r, for 32 words: their pairs of bits are turned around.
[[maybe_unused]] void transpose_pairs(const std::uint32_t* words, std::uint64_t* target) {
  // Of block (g, j) of 16 words, the rows are byte j of the words 4 * g up to 4 * g + 4, each as it is and shifted by one bit,
  // so that the even columns hold both bits of a pair. The product takes the rows of a matrix from the last on.
  alignas(64) static constexpr auto gather = [] {
    struct { std::uint8_t byte[2][64]; } order{};
    for (int q = 0; q < 16; ++q) {
      const int g = q % 4, j = q / 4;
      for (int t = 0; t < 8; ++t) order.byte[j / 2][q % 8 * 8 + 7 - t] = t % 2 * 64 + 4 * (4 * g + t / 2) + j;
    }
    return order;
  }();
  // Byte 4 * half + g of step 4 * j + m is byte m of block (g, j) of that half of the words.
  alignas(64) static constexpr auto scatter = [] {
    struct { std::uint8_t byte[64]; } order{};
    for (int k = 0; k < 64; ++k) order.byte[k] = k / 4 % 2 * 64 + 8 * (k / 32 * 4 + k % 4) + k / 8 % 4;
    return order;
  }();
  const __m512i columns = _mm512_set1_epi64(0x4010040140100401);
  const __m512i places = _mm512_load_si512(scatter.byte);
  const __m512i low = _mm512_loadu_si512(words), high = _mm512_loadu_si512(words + 16);
  const __m512i low_odd = _mm512_srli_epi32(low, 1), high_odd = _mm512_srli_epi32(high, 1);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m512i order = _mm512_load_si512(gather.byte[half]);
    const __m512i a = _mm512_gf2p8affine_epi64_epi8(columns, _mm512_permutex2var_epi8(low, order, low_odd), 0);
    const __m512i b = _mm512_gf2p8affine_epi64_epi8(columns, _mm512_permutex2var_epi8(high, order, high_odd), 0);
    _mm512_storeu_si512(target + 8 * half, _mm512_permutex2var_epi8(a, places, b));
  }
}

#elif defined(__AVX2__)

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
