#include "pack_bits.h"

#include "bits.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace cad_fast::CAD_FAST_TARGET {
namespace {

std::uint32_t pack_tail(const std::uint8_t* bytes, std::int64_t count) {
  std::uint32_t word = 0;
  for (std::int64_t i = 0; i < count; ++i) word |= std::uint32_t{bytes[i] != 0} << i;
  return word;
}

#if defined(__AVX2__)

std::uint32_t pack_word(const std::uint8_t* bytes) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  const __m256i zero = _mm256_cmpeq_epi8(v, _mm256_setzero_si256());
  return ~static_cast<std::uint32_t>(_mm256_movemask_epi8(zero));
}

#else

// The first byte in the lowest place whatever the byte order; compilers make one load of it.
std::uint64_t load_eight(const std::uint8_t* bytes) {
  std::uint64_t v = 0;
  for (int i = 0; i < 8; ++i) v |= std::uint64_t{bytes[i]} << (8 * i);
  return v;
}

std::uint32_t pack_word(const std::uint8_t* bytes) {
  constexpr std::uint64_t low7 = 0x7f7f7f7f7f7f7f7f;
  constexpr std::uint64_t gather = 0x0102040810204080;  // moves bit 8 * k to bit 56 + k
  std::uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const std::uint64_t v = load_eight(bytes + 8 * i);
    const std::uint64_t nonzero = (((v & low7) + low7) | v) >> 7 & 0x0101010101010101;
    word |= static_cast<std::uint32_t>((nonzero * gather) >> 56) << (8 * i);
  }
  return word;
}

#endif

// The words [first, last) of one row of n bytes.
void pack_row(const std::uint8_t* bytes, std::uint8_t* words, std::int64_t n, std::int64_t first, std::int64_t last) {
  const std::int64_t whole = n / word_bits;
  const std::int64_t last_whole = last < whole ? last : whole;
  std::int64_t j = first;
#if defined(__AVX512BW__)
  for (; j + 2 <= last_whole; j += 2) {
    const __m512i v = _mm512_loadu_si512(bytes + word_bits * j);
    const std::uint64_t two = _mm512_test_epi8_mask(v, v);
    std::memcpy(words + 4 * j, &two, sizeof two);
  }
#endif
  for (; j < last_whole; ++j) store_word(words + 4 * j, pack_word(bytes + word_bits * j));
  if (j < last) store_word(words + 4 * j, pack_tail(bytes + word_bits * j, n - word_bits * j));
}

}  // namespace

void pack_bits(const std::uint8_t* bytes, std::uint8_t* words, std::int64_t n, std::int64_t begin,
               std::int64_t end) noexcept {
  const std::int64_t row_words = words_for(n);
  for_each_row(begin, end, row_words, [=](std::int64_t row, std::int64_t first, std::int64_t last) {
    pack_row(bytes + row * n, words + 4 * row * row_words, n, first, last);
  });
}

}  // namespace cad_fast::CAD_FAST_TARGET
