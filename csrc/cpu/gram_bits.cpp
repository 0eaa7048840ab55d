#include "gram_bits.h"

#include "runtime/cpu.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace cad_fast::CAD_FAST_TARGET {
namespace {

constexpr int group = 4;           // rows whose vectors lie side by side in a panel
constexpr int vector_bytes = 64;   // what a row has of each group at a time
constexpr int vector_words = vector_bytes / 4;

// Counts of the pairs of two groups of rows over `vectors` vectors of each, added to counts[group][gram_tile].
using CountGroups = void(const std::uint8_t* a, const std::uint8_t* b, std::int64_t vectors, std::int32_t* counts);

// Copies up to a tile's rows, from word `first` on, to [gram_tile / group][vectors][group][64 bytes]; zeros behind.
void pack_panel(const GramBits& task, std::int64_t row, std::int64_t first, std::int64_t vectors, std::uint8_t* panel) {
  const std::int64_t left = task.row_words - first;
  for (std::int64_t r = 0; r < gram_tile; ++r) {
    std::uint8_t* out = panel + (r / group * vectors * group + r % group) * vector_bytes;
    const std::uint8_t* in = task.words + 4 * ((row + r) * task.row_words + first);
    for (std::int64_t v = 0; v < vectors; ++v, out += group * vector_bytes) {
      const std::int64_t words = row + r >= task.rows ? 0 : left - v * vector_words;
      if (words >= vector_words) {
        std::memcpy(out, in + v * vector_bytes, vector_bytes);
      } else {
        std::memset(out, 0, vector_bytes);
        if (words > 0) std::memcpy(out, in + v * vector_bytes, 4 * words);
      }
    }
  }
}

#if defined(__AVX512F__)

// Not part of the avx512 target: the first CPUs with AVX-512 cannot count bits in vectors.
__attribute__((target("avx512vpopcntdq"))) void count_vectors(const std::uint8_t* a, const std::uint8_t* b,
                                                              std::int64_t vectors, std::int32_t* counts) {
  __m512i totals[group][group];
  for (auto& row : totals) {
    for (auto& total : row) total = _mm512_setzero_si512();
  }
  for (std::int64_t v = 0; v < vectors; ++v, a += group * vector_bytes, b += group * vector_bytes) {
    __m512i of_b[group];
    for (int j = 0; j < group; ++j) of_b[j] = _mm512_load_si512(b + j * vector_bytes);
    for (int i = 0; i < group; ++i) {
      const __m512i of_a = _mm512_load_si512(a + i * vector_bytes);
      for (int j = 0; j < group; ++j) {
        const __m512i both = _mm512_popcnt_epi64(_mm512_and_si512(of_a, of_b[j]));
        totals[i][j] = _mm512_add_epi64(totals[i][j], both);
      }
    }
  }
  for (int i = 0; i < group; ++i) {
    for (int j = 0; j < group; ++j) {
      // Counts of a panel fit 32 bits: the low halves of the lanes are all there is.
      const __m256i half = _mm512_cvtepi64_epi32(totals[i][j]);
      __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
      sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
      sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
      counts[i * gram_tile + j] += _mm_cvtsi128_si32(sum);
    }
  }
}

#endif

#if defined(__AVX2__)

// W. Mula, N. Kurz, D. Lemire, "Faster population counts using AVX2 instructions", 2018: a table of 16 counts in a
// shuffle; bytes take 31 counts of up to 8 before they are added up.
constexpr std::int64_t most_in_bytes = 15;  // vectors, of two halves each

void count_any(const std::uint8_t* a, const std::uint8_t* b, std::int64_t vectors, std::int32_t* counts) {
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                         0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i low = _mm256_set1_epi8(0x0f);
  for (int i = 0; i < group; ++i) {
    __m256i totals[group];
    for (auto& total : totals) total = _mm256_setzero_si256();
    for (std::int64_t begin = 0; begin < vectors; begin += most_in_bytes) {
      const std::int64_t end = begin + most_in_bytes < vectors ? begin + most_in_bytes : vectors;
      __m256i bytes[group];
      for (auto& byte : bytes) byte = _mm256_setzero_si256();
      for (std::int64_t v = begin; v < end; ++v) {
        for (int half = 0; half < vector_bytes; half += 32) {
          const std::int64_t at = v * group * vector_bytes + half;
          const __m256i of_a = _mm256_load_si256(reinterpret_cast<const __m256i*>(a + at + i * vector_bytes));
          for (int j = 0; j < group; ++j) {
            const auto* of_b = reinterpret_cast<const __m256i*>(b + at + j * vector_bytes);
            const __m256i both = _mm256_and_si256(of_a, _mm256_load_si256(of_b));
            const __m256i lower = _mm256_shuffle_epi8(table, _mm256_and_si256(both, low));
            const __m256i upper = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(both, 4), low));
            bytes[j] = _mm256_add_epi8(bytes[j], _mm256_add_epi8(lower, upper));
          }
        }
      }
      for (int j = 0; j < group; ++j) {
        totals[j] = _mm256_add_epi64(totals[j], _mm256_sad_epu8(bytes[j], _mm256_setzero_si256()));
      }
    }
    for (int j = 0; j < group; ++j) {
      const __m128i pair = _mm_add_epi64(_mm256_castsi256_si128(totals[j]), _mm256_extracti128_si256(totals[j], 1));
      counts[i * gram_tile + j] += _mm_cvtsi128_si32(_mm_add_epi64(pair, _mm_unpackhi_epi64(pair, pair)));
    }
  }
}

#else

std::int32_t count_of(std::uint64_t v) {
  v -= (v >> 1) & 0x5555555555555555;
  v = (v & 0x3333333333333333) + ((v >> 2) & 0x3333333333333333);
  v = (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0f;
  return static_cast<std::int32_t>((v * 0x0101010101010101) >> 56);
}

void count_any(const std::uint8_t* a, const std::uint8_t* b, std::int64_t vectors, std::int32_t* counts) {
  for (int i = 0; i < group; ++i) {
    for (int j = 0; j < group; ++j) {
      std::int32_t total = 0;
      for (std::int64_t v = 0; v < vectors; ++v) {
        std::uint64_t of_a[vector_bytes / 8], of_b[vector_bytes / 8];
        std::memcpy(of_a, a + (v * group + i) * vector_bytes, sizeof of_a);
        std::memcpy(of_b, b + (v * group + j) * vector_bytes, sizeof of_b);
        for (int k = 0; k < vector_bytes / 8; ++k) total += count_of(of_a[k] & of_b[k]);
      }
      counts[i * gram_tile + j] += total;
    }
  }
}

#endif

CountGroups* best_count() {
#if defined(__AVX512F__)
  if (cpu_has(Feature::avx512vpopcntdq)) return &count_vectors;
#endif
  return &count_any;
}

}  // namespace

void gram_bits(const GramBits& task, std::int64_t i, std::int64_t j, std::uint8_t* scratch) noexcept {
  CountGroups* const count = best_count();
  constexpr std::int64_t panel_bytes = gram_tile * gram_depth * 4;
  std::uint8_t* const a = scratch;
  std::uint8_t* const b = i == j ? a : scratch + panel_bytes;
  auto* const counts = reinterpret_cast<std::int32_t*>(scratch + 2 * panel_bytes);
  std::memset(counts, 0, gram_tile * gram_tile * sizeof *counts);

  for (std::int64_t first = 0; first < task.row_words; first += gram_depth) {
    const std::int64_t left = task.row_words - first;
    const std::int64_t vectors = ceil_div(left < gram_depth ? left : gram_depth, vector_words);
    pack_panel(task, i * gram_tile, first, vectors, a);
    if (i != j) pack_panel(task, j * gram_tile, first, vectors, b);
    const std::int64_t group_bytes = vectors * group * vector_bytes;
    for (std::int64_t p = 0; p < gram_tile / group; ++p) {
      for (std::int64_t q = 0; q < gram_tile / group; ++q) {
        count(a + p * group_bytes, b + q * group_bytes, vectors, counts + group * (p * gram_tile + q));
      }
    }
  }

  for (std::int64_t r = 0; r < gram_tile && i * gram_tile + r < task.rows; ++r) {
    for (std::int64_t c = 0; c < gram_tile && j * gram_tile + c < task.rows; ++c) {
      const std::int32_t value = counts[r * gram_tile + c];
      task.counts[(i * gram_tile + r) * task.rows + j * gram_tile + c] = value;
      task.counts[(j * gram_tile + c) * task.rows + i * gram_tile + r] = value;
    }
  }
}

}  // namespace cad_fast::CAD_FAST_TARGET
