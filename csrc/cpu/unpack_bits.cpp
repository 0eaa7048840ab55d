#include "unpack_bits.h"

#include "bits.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace cad_fast::CAD_FAST_TARGET {
namespace {

void unpack_tail(std::uint32_t word, std::uint8_t* bytes, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) bytes[i] = (word >> i) & 1u;
}

#if defined(__AVX512BW__) && defined(__AVX512VL__)

void unpack_word(std::uint32_t word, std::uint8_t* bytes) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes), _mm256_maskz_mov_epi8(word, _mm256_set1_epi8(1)));
}

#elif defined(__AVX2__)

void unpack_word(std::uint32_t word, std::uint8_t* bytes) {
  const __m256i byte_of_word = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of_byte = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(word)), byte_of_word);
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit_of_byte), bit_of_byte);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes), _mm256_and_si256(set, _mm256_set1_epi8(1)));
}

#else

// The lowest byte first whatever the byte order; compilers make one store of it.
void store_eight(std::uint8_t* bytes, std::uint64_t v) {
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<std::uint8_t>(v >> (8 * i));
}

void unpack_word(std::uint32_t word, std::uint8_t* bytes) {
  constexpr std::uint64_t ones = 0x0101010101010101;
  constexpr std::uint64_t bit_of_byte = 0x8040201008040201;
  constexpr std::uint64_t low7 = 0x7f7f7f7f7f7f7f7f;
  for (int i = 0; i < 4; ++i) {
    const std::uint64_t bits = (((word >> (8 * i)) & 0xffu) * ones) & bit_of_byte;
    const std::uint64_t nonzero = (((bits & low7) + low7) | bits) >> 7 & ones;
    store_eight(bytes + 8 * i, nonzero);
  }
}

#endif

// The words [first, last) of one row of n bytes.
void unpack_row(const std::uint8_t* words, std::uint8_t* bytes, std::int64_t n, std::int64_t first,
                std::int64_t last) {
  const std::int64_t whole = n / word_bits;
  const std::int64_t last_whole = last < whole ? last : whole;
  std::int64_t j = first;
#if defined(__AVX512BW__)
  for (; j + 2 <= last_whole; j += 2) {
    std::uint64_t two;
    std::memcpy(&two, words + 4 * j, sizeof two);
    _mm512_storeu_si512(bytes + word_bits * j, _mm512_maskz_mov_epi8(two, _mm512_set1_epi8(1)));
  }
#endif
  for (; j < last_whole; ++j) unpack_word(load_word(words + 4 * j), bytes + word_bits * j);
  if (j < last) unpack_tail(load_word(words + 4 * j), bytes + word_bits * j, n - word_bits * j);
}

}  // namespace

void unpack_bits(const std::uint8_t* words, std::uint8_t* bytes, std::int64_t n, std::int64_t begin,
                 std::int64_t end) noexcept {
  const std::int64_t row_words = words_for(n);
  for_each_row(begin, end, row_words, [=](std::int64_t row, std::int64_t first, std::int64_t last) {
    unpack_row(words + 4 * row * row_words, bytes + row * n, n, first, last);
  });
}

}  // namespace cad_fast::CAD_FAST_TARGET
