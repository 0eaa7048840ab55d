#include "masked_linear_scores.h"

#include "bfloat16.h"
#include "bits.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace cad_fast::CAD_FAST_TARGET {
namespace {

// Vector is a piece of an output row, Mask the variant's bits for it; Sums keeps what was added for either bit.
#if defined(__AVX512F__)

using Vector = __m512;
using Mask = __mmask16;
constexpr int tile_n = 4;

Vector zero() { return _mm512_setzero_ps(); }
Vector load(const float* p) { return _mm512_load_ps(p); }
Vector load_unaligned(const float* p) { return _mm512_loadu_ps(p); }
void store(float* p, Vector v) { _mm512_store_ps(p, v); }
void store_unaligned(float* p, Vector v) { _mm512_storeu_ps(p, v); }
Vector fma(float a, Vector b, Vector c) { return _mm512_fmadd_ps(_mm512_set1_ps(a), b, c); }
Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
Mask mask_of(std::uint32_t word, int vector) { return static_cast<Mask>(word >> (16 * vector)); }
Vector add_where(Mask mask, Vector sum, Vector v) { return _mm512_mask_add_ps(sum, mask, sum, v); }
Vector add_unless(Mask mask, Vector sum, Vector v) { return _mm512_mask_add_ps(sum, _knot_mask16(mask), sum, v); }

#elif defined(__AVX2__)

using Vector = __m256;
using Mask = __m256;
constexpr int tile_n = 2;

Vector zero() { return _mm256_setzero_ps(); }
Vector load(const float* p) { return _mm256_load_ps(p); }
Vector load_unaligned(const float* p) { return _mm256_loadu_ps(p); }
void store(float* p, Vector v) { _mm256_store_ps(p, v); }
void store_unaligned(float* p, Vector v) { _mm256_storeu_ps(p, v); }
Vector fma(float a, Vector b, Vector c) { return _mm256_fmadd_ps(_mm256_set1_ps(a), b, c); }
Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
Mask mask_of(std::uint32_t word, int vector) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i bits = _mm256_set1_epi32(static_cast<int>(word >> (8 * vector)));
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(bits, bit), bit));
}
Vector add_where(Mask mask, Vector sum, Vector v) { return _mm256_add_ps(sum, _mm256_and_ps(mask, v)); }
Vector add_unless(Mask mask, Vector sum, Vector v) { return _mm256_add_ps(sum, _mm256_andnot_ps(mask, v)); }

#else

typedef float Vector __attribute__((vector_size(16)));
typedef std::int32_t Mask __attribute__((vector_size(16)));
constexpr int tile_n = 1;

Vector zero() { return Vector{0, 0, 0, 0}; }
Vector load_unaligned(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
Vector load(const float* p) { return load_unaligned(p); }
void store_unaligned(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }
void store(float* p, Vector v) { store_unaligned(p, v); }
Vector fma(float a, Vector b, Vector c) { return a * b + c; }
Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
Mask mask_of(std::uint32_t word, int vector) {
  const Mask bit = {1, 2, 4, 8};
  const std::int32_t four = static_cast<std::int32_t>(word >> (4 * vector) & 15u);
  return (Mask{four, four, four, four} & bit) == bit;
}
Vector add_where(Mask mask, Vector sum, Vector v) { return sum + (Vector)(mask & (Mask)v); }
Vector add_unless(Mask mask, Vector sum, Vector v) { return sum + (Vector)(~mask & (Mask)v); }

#endif

constexpr int lanes = sizeof(Vector) / sizeof(float);
constexpr int tile_vectors = scores_tile_k / lanes;
static_assert(scores_tile_n % tile_n == 0);

constexpr std::int64_t prefetch_rows = 4;

// Copies columns [begin, end) of `rows` rows into panels [panel][row][width], the last one filled up with zeros.
template <int width, class T>
void pack(const T* from, std::int64_t stride, std::int64_t rows, std::int64_t begin, std::int64_t end, float* to) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const T* source = from + row * stride;
    float* target = to + row * width;
    // The rows are apart in memory, and no hardware foresees where the next one begins.
    if (row + prefetch_rows < rows) {
      const char* ahead = reinterpret_cast<const char*>(source + prefetch_rows * stride + begin);
      for (std::int64_t at = 0; at < (end - begin) * std::int64_t{sizeof(T)}; at += 64) __builtin_prefetch(ahead + at);
    }
    std::int64_t column = begin;
    for (; column + width <= end; column += width, target += rows * width) {
      for (int i = 0; i < width; ++i) target[i] = to_float(source[column + i]);
    }
    if (column == end) continue;
    for (int i = 0; i < width; ++i) target[i] = column + i < end ? to_float(source[column + i]) : 0.0f;
  }
}

// Rows [begin, begin + count) of grad and x, counted through all variants, packed for one block of the output.
struct Rows {
  const float* grad;  // [tile of N][row][tile_n]
  const float* x;     // [tile of K][row][scores_tile_k]
  std::int64_t begin, count;
};

struct Sums {
  Vector kept[tile_n][tile_vectors];
  Vector ablated[tile_n][tile_vectors];
};

// The sums of one tile with these rows added; words[i] and stride lead to the word of tile row i and variant v. By
// value, as the compiler keeps no array in registers that a store or load of bytes might touch.
Sums add_rows(const Rows& rows, const float* grad, const float* x, std::int64_t rows_per_variant,
              const std::uint8_t* const (&words)[tile_n], std::int64_t stride, Sums sums) {
  std::int64_t variant = rows.begin / rows_per_variant;
  std::int64_t left = (variant + 1) * rows_per_variant - rows.begin;
  for (std::int64_t row = 0; row < rows.count; ++variant, left = rows_per_variant) {
    const std::int64_t end = row + left < rows.count ? row + left : rows.count;
    Vector gradient[tile_n][tile_vectors];
    for (int i = 0; i < tile_n; ++i) {
      for (int j = 0; j < tile_vectors; ++j) gradient[i][j] = zero();
    }
    for (; row < end; ++row, grad += tile_n, x += scores_tile_k) {
      Vector columns[tile_vectors];
      for (int j = 0; j < tile_vectors; ++j) columns[j] = load(x + lanes * j);
      for (int i = 0; i < tile_n; ++i) {
        for (int j = 0; j < tile_vectors; ++j) gradient[i][j] = fma(grad[i], columns[j], gradient[i][j]);
      }
    }
    for (int i = 0; i < tile_n; ++i) {
      const std::uint32_t word = load_word(words[i] + variant * stride);
      for (int j = 0; j < tile_vectors; ++j) {
        const Mask mask = mask_of(word, j);
        sums.kept[i][j] = add_unless(mask, sums.kept[i][j], gradient[i][j]);
        sums.ablated[i][j] = add_where(mask, sums.ablated[i][j], gradient[i][j]);
      }
    }
  }
  return sums;
}

// target[0, count) += weight * sum, for the piece of an output row that one tile holds.
template <class T>
void add_product(const T* weight, const Vector (&sum)[tile_vectors], std::int64_t count, float* target) {
  alignas(64) float factor[scores_tile_k];
  alignas(64) float total[scores_tile_k];
  for (int j = 0; j < tile_vectors; ++j) store(total + lanes * j, sum[j]);
  if (count < scores_tile_k) {
    for (std::int64_t i = 0; i < count; ++i) target[i] += to_float(weight[i]) * total[i];
    return;
  }
  for (int i = 0; i < scores_tile_k; ++i) factor[i] = to_float(weight[i]);
  for (int j = 0; j < tile_vectors; ++j) {
    float* piece = target + lanes * j;
    store_unaligned(piece, fma(load(factor + lanes * j), sum[j], load_unaligned(piece)));
  }
}

template <class T>
void finish_as(const MaskedLinearScores& problem, const ScoresBlock& block, std::int64_t n, std::int64_t k,
               const Sums& sums) {
  const std::int64_t count = block.k_end - k < scores_tile_k ? block.k_end - k : scores_tile_k;
  for (int i = 0; i < tile_n && n + i < block.n_end; ++i) {
    const std::int64_t at = (n + i) * problem.k + k;
    const T* weight = static_cast<const T*>(problem.weight) + at;
    add_product(weight, sums.kept[i], count, problem.kept + at);
    add_product(weight, sums.ablated[i], count, problem.ablated + at);
  }
}

void finish(const MaskedLinearScores& problem, const ScoresBlock& block, std::int64_t n, std::int64_t k,
            const Sums& sums) {
  if (problem.bfloat16) {
    finish_as<bfloat16>(problem, block, n, k, sums);
  } else {
    finish_as<float>(problem, block, n, k, sums);
  }
}

void load_sums(const float* from, Sums& sums) {
  for (int i = 0; i < tile_n; ++i) {
    for (int j = 0; j < tile_vectors; ++j, from += 2 * lanes) {
      sums.kept[i][j] = load(from);
      sums.ablated[i][j] = load(from + lanes);
    }
  }
}

void store_sums(const Sums& sums, float* to) {
  for (int i = 0; i < tile_n; ++i) {
    for (int j = 0; j < tile_vectors; ++j, to += 2 * lanes) {
      store(to, sums.kept[i][j]);
      store(to + lanes, sums.ablated[i][j]);
    }
  }
}

// One tile: its sums come from `scratch` unless these rows are the first, and go there unless they are the last.
void update_tile(const MaskedLinearScores& problem, const ScoresBlock& block, const Rows& rows, std::int64_t n,
                 std::int64_t k, float* scratch) {
  const std::int64_t row_words = words_for(problem.k);
  const std::uint8_t* words[tile_n];
  for (int i = 0; i < tile_n; ++i) {
    const std::int64_t row = n + i < block.n_end ? n + i : block.n_end - 1;
    words[i] = problem.words + 4 * (row * row_words + k / word_bits);
  }
  const float* grad = rows.grad + (n - block.n_begin) * rows.count;
  const float* x = rows.x + (k - block.k_begin) * rows.count;

  Sums sums;
  if (rows.begin == 0) {
    sums = Sums{};
  } else {
    load_sums(scratch, sums);
  }
  sums = add_rows(rows, grad, x, problem.rows, words, 4 * problem.n * row_words, sums);
  if (rows.begin + rows.count == problem.variants * problem.rows) {
    finish(problem, block, n, k, sums);
  } else {
    store_sums(sums, scratch);
  }
}

template <class T>
void add_block(const MaskedLinearScores& problem, const ScoresBlock& block, float* scratch) {
  const std::int64_t all_rows = problem.variants * problem.rows;
  float* const grad = scratch;
  float* const x = grad + scores_max_rows * scores_max_n;
  float* const sums = x + scores_max_rows * scores_max_k;

  for (std::int64_t begin = 0; begin < all_rows; begin += scores_max_rows) {
    const std::int64_t count = all_rows - begin < scores_max_rows ? all_rows - begin : scores_max_rows;
    const Rows rows{grad, x, begin, count};
    pack<tile_n>(static_cast<const T*>(problem.grad) + begin * problem.n, problem.n, count, block.n_begin, block.n_end,
                 grad);
    pack<scores_tile_k>(static_cast<const T*>(problem.x) + begin * problem.k, problem.k, count, block.k_begin,
                        block.k_end, x);
    float* tile = sums;
    for (std::int64_t k = block.k_begin; k < block.k_end; k += scores_tile_k) {
      for (std::int64_t n = block.n_begin; n < block.n_end; n += tile_n, tile += 2 * tile_n * scores_tile_k) {
        update_tile(problem, block, rows, n, k, tile);
      }
    }
  }
}

}  // namespace

void masked_linear_scores(const MaskedLinearScores& problem, const ScoresBlock& block, float* scratch) noexcept {
  if (problem.bfloat16) {
    add_block<bfloat16>(problem, block, scratch);
  } else {
    add_block<float>(problem, block, scratch);
  }
}

}  // namespace cad_fast::CAD_FAST_TARGET
