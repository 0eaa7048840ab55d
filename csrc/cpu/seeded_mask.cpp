#include "seeded_mask.h"

#include "bits.h"

#if defined(__AVX2__)
// g++ 12 takes the operand that its own header leaves undefined on purpose for a mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace cad_fast::CAD_FAST_TARGET {
namespace {

// Philox4x32-10: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
constexpr int philox_rounds = 10;
constexpr std::uint32_t multiplier0 = 0xD2511F53;
constexpr std::uint32_t multiplier1 = 0xCD9E8D57;
constexpr std::uint32_t key_step0 = 0x9E3779B9;
constexpr std::uint32_t key_step1 = 0xBB67AE85;

constexpr int blocks_per_word = 8;

#if defined(__AVX2__)

#if defined(__AVX512F__)

using Vector = __m512i;
constexpr int words_at_once = 2;

Vector set_each(std::uint64_t v) { return _mm512_set1_epi64(static_cast<long long>(v)); }
Vector add(Vector a, Vector b) { return _mm512_add_epi64(a, b); }
Vector high_half(Vector v) { return _mm512_srli_epi64(v, 32); }
Vector multiply(Vector a, Vector b) { return _mm512_mul_epu32(a, b); }
Vector xor_three(Vector a, Vector b, Vector c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }

// Blocks in the order that lets the unpacking of `bits_at_most` leave the first half in the low, the other in the high.
Vector block_order() { return _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7); }

std::uint32_t bits_at_most(const Vector (&draws)[4], Vector last) {
  const Vector first_two = _mm512_mask_shuffle_epi32(draws[0], 0xaaaa, draws[1], _MM_PERM_CCAA);
  const Vector last_two = _mm512_mask_shuffle_epi32(draws[2], 0xaaaa, draws[3], _MM_PERM_CCAA);
  const std::uint32_t low = _mm512_cmple_epu32_mask(_mm512_unpacklo_epi64(first_two, last_two), last);
  const std::uint32_t high = _mm512_cmple_epu32_mask(_mm512_unpackhi_epi64(first_two, last_two), last);
  return low | high << 16;
}

#else

using Vector = __m256i;
constexpr int words_at_once = 2;

Vector set_each(std::uint64_t v) { return _mm256_set1_epi64x(static_cast<long long>(v)); }
Vector add(Vector a, Vector b) { return _mm256_add_epi64(a, b); }
Vector high_half(Vector v) { return _mm256_srli_epi64(v, 32); }
Vector multiply(Vector a, Vector b) { return _mm256_mul_epu32(a, b); }
Vector xor_three(Vector a, Vector b, Vector c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }

// Blocks in the order that lets the unpacking of `bits_at_most` leave the first half in the low, the other in the high.
Vector block_order() { return _mm256_setr_epi64x(0, 2, 1, 3); }

std::uint32_t byte_at_most(Vector v, Vector last) {
  const Vector at_most = _mm256_cmpeq_epi32(_mm256_max_epu32(v, last), last);
  return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(at_most)));
}

std::uint32_t bits_at_most(const Vector (&draws)[4], Vector last) {
  const Vector first_two = _mm256_blend_epi32(draws[0], _mm256_slli_epi64(draws[1], 32), 0xaa);
  const Vector last_two = _mm256_blend_epi32(draws[2], _mm256_slli_epi64(draws[3], 32), 0xaa);
  return byte_at_most(_mm256_unpacklo_epi64(first_two, last_two), last) |
         byte_at_most(_mm256_unpackhi_epi64(first_two, last_two), last) << 8;
}

#endif

constexpr int lanes = sizeof(Vector) / 8;
constexpr int vectors_per_word = blocks_per_word / lanes;

// Each counter sits in the low half of a 64-bit lane; what the high halves hold is never looked at.
template <int words>
void draw(std::uint64_t seed, std::uint64_t row, std::uint64_t block, std::uint32_t last, std::uint8_t* out) {
  constexpr int vectors = words * vectors_per_word;
  Vector c[vectors][4];
  for (int i = 0; i < vectors; ++i) {
    c[i][0] = add(set_each(block + lanes * i), block_order());
    c[i][1] = high_half(c[i][0]);
    c[i][2] = set_each(row);
    c[i][3] = set_each(row >> 32);
  }
  std::uint32_t key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < philox_rounds; ++round, key0 += key_step0, key1 += key_step1) {
    for (int i = 0; i < vectors; ++i) {
      const Vector product0 = multiply(c[i][0], set_each(multiplier0));
      const Vector product1 = multiply(c[i][2], set_each(multiplier1));
      c[i][0] = xor_three(high_half(product1), c[i][1], set_each(key0));
      c[i][1] = product1;
      c[i][2] = xor_three(high_half(product0), c[i][3], set_each(key1));
      c[i][3] = product0;
    }
  }
  const Vector limit = set_each(last | std::uint64_t{last} << 32);
  for (int w = 0; w < words; ++w) {
    std::uint32_t word = 0;
    for (int i = 0; i < vectors_per_word; ++i) word |= bits_at_most(c[w * vectors_per_word + i], limit) << (4 * lanes * i);
    store_word(out + 4 * w, word);
  }
}

#else

constexpr int words_at_once = 1;

template <int words>
void draw(std::uint64_t seed, std::uint64_t row, std::uint64_t block, std::uint32_t last, std::uint8_t* out) {
  static_assert(words == 1);
  std::uint32_t c[4][blocks_per_word];
  for (int i = 0; i < blocks_per_word; ++i) {
    c[0][i] = static_cast<std::uint32_t>(block + i);
    c[1][i] = static_cast<std::uint32_t>((block + i) >> 32);
    c[2][i] = static_cast<std::uint32_t>(row);
    c[3][i] = static_cast<std::uint32_t>(row >> 32);
  }
  std::uint32_t key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < philox_rounds; ++round, key0 += key_step0, key1 += key_step1) {
    for (int i = 0; i < blocks_per_word; ++i) {
      const std::uint64_t product0 = std::uint64_t{multiplier0} * c[0][i];
      const std::uint64_t product1 = std::uint64_t{multiplier1} * c[2][i];
      c[0][i] = static_cast<std::uint32_t>(product1 >> 32) ^ c[1][i] ^ key0;
      c[1][i] = static_cast<std::uint32_t>(product1);
      c[2][i] = static_cast<std::uint32_t>(product0 >> 32) ^ c[3][i] ^ key1;
      c[3][i] = static_cast<std::uint32_t>(product0);
    }
  }
  std::uint32_t word = 0;
  for (int i = 0; i < blocks_per_word; ++i) {
    for (int d = 0; d < 4; ++d) word |= std::uint32_t{c[d][i] <= last} << (4 * i + d);
  }
  store_word(out, word);
}

#endif

}  // namespace

void seeded_mask(std::uint64_t seed, std::uint64_t row, std::int64_t begin, std::int64_t count, std::uint32_t last,
                 std::uint8_t* words) noexcept {
  std::uint64_t block = blocks_per_word * static_cast<std::uint64_t>(begin);
  std::int64_t j = 0;
  for (; j + words_at_once <= count; j += words_at_once, block += blocks_per_word * words_at_once) {
    draw<words_at_once>(seed, row, block, last, words + 4 * j);
  }
  for (; j < count; ++j, block += blocks_per_word) draw<1>(seed, row, block, last, words + 4 * j);
}

}  // namespace cad_fast::CAD_FAST_TARGET
