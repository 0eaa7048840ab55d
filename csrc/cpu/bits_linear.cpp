#include "bits_linear.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace cad_fast::CAD_FAST_TARGET {
namespace {

#if defined(__AVX512F__)

using Vec = __m512d;
constexpr int lanes = 8;
constexpr int words_at_once = 4;  // 16 vectors of sums

Vec zero() { return _mm512_setzero_pd(); }
Vec load(const double* address) { return _mm512_loadu_pd(address); }
void store(double* address, Vec v) { _mm512_storeu_pd(address, v); }
Vec broadcast(double v) { return _mm512_set1_pd(v); }
Vec add(Vec a, Vec b) { return _mm512_add_pd(a, b); }
// Lane i of a, plus that of b where bit i is set.
Vec add_where(std::uint32_t bits, Vec a, Vec b) { return _mm512_mask_add_pd(a, static_cast<__mmask8>(bits), a, b); }

#elif defined(__AVX2__)

using Vec = __m256d;
constexpr int lanes = 4;
constexpr int words_at_once = 1;

Vec zero() { return _mm256_setzero_pd(); }
Vec load(const double* address) { return _mm256_loadu_pd(address); }
void store(double* address, Vec v) { _mm256_storeu_pd(address, v); }
Vec broadcast(double v) { return _mm256_set1_pd(v); }
Vec add(Vec a, Vec b) { return _mm256_add_pd(a, b); }
Vec add_where(std::uint32_t bits, Vec a, Vec b) {
  const __m256i bit_of_lane = _mm256_setr_epi64x(1, 2, 4, 8);
  const __m256i spread = _mm256_and_si256(_mm256_set1_epi64x(bits), bit_of_lane);
  const __m256i set = _mm256_cmpeq_epi64(spread, bit_of_lane);
  return _mm256_add_pd(a, _mm256_and_pd(_mm256_castsi256_pd(set), b));
}

#else

// Four doubles that compilers keep in whatever vector register the architecture has.
struct Vec {
  double lane[4];
};
constexpr int lanes = 4;
constexpr int words_at_once = 1;

Vec broadcast(double v) { return {{v, v, v, v}}; }
Vec zero() { return broadcast(0); }
Vec load(const double* address) { return {{address[0], address[1], address[2], address[3]}}; }
void store(double* address, Vec v) { std::memcpy(address, v.lane, sizeof v.lane); }
Vec add(Vec a, Vec b) {
  for (int i = 0; i < lanes; ++i) a.lane[i] += b.lane[i];
  return a;
}
Vec add_where(std::uint32_t bits, Vec a, Vec b) {
  for (int i = 0; i < lanes; ++i) a.lane[i] += (bits >> i) & 1u ? b.lane[i] : 0.0;
  return a;
}

#endif

constexpr int vectors_per_word = word_bits / lanes;
constexpr int group = 4;                  // targets that share the bits they are added by
constexpr std::int64_t block_words = 32;  // with their doubles, 8 KiB of each target of a group: as much as L1 holds
constexpr std::int64_t block_rows = 256;

double sum_of(Vec v) {
  double lane[lanes];
  store(lane, v);
  double total = 0;
  for (const double value : lane) total += value;
  return total;
}

// Adds to y[t * rows] what the words set of x[t * columns], for `count` targets.
template <int count>
void add_row(const std::uint8_t* words, std::int64_t n_words, const double* x, std::int64_t columns, double* y,
             std::int64_t rows) {
  Vec sums[count][2];
  for (auto& pair : sums) pair[0] = pair[1] = zero();
  for (std::int64_t j = 0; j < n_words; ++j) {
    const std::uint32_t word = load_word(words + 4 * j);
    for (int v = 0; v < vectors_per_word; ++v) {
      for (int t = 0; t < count; ++t) {
        const Vec values = load(x + t * columns + word_bits * j + lanes * v);
        sums[t][v % 2] = add_where(word >> (lanes * v), sums[t][v % 2], values);
      }
    }
  }
  for (int t = 0; t < count; ++t) y[t * rows] += sum_of(add(sums[t][0], sums[t][1]));
}

void add_rows(const BitsLinear& task, std::int64_t begin, std::int64_t end) {
  const std::int64_t columns = word_bits * task.row_words;
  for (std::int64_t t = 0; t < task.targets; ++t) {
    std::memset(task.y + t * task.rows + begin, 0, sizeof(double) * (end - begin));
  }
  for (std::int64_t first = begin; first < end; first += block_rows) {
    const std::int64_t last = first + block_rows < end ? first + block_rows : end;
    for (std::int64_t word = 0; word < task.row_words; word += block_words) {
      const std::int64_t n_words = task.row_words - word < block_words ? task.row_words - word : block_words;
      for (std::int64_t t = 0; t < task.targets; t += group) {
        for (std::int64_t row = first; row < last; ++row) {
          const std::uint8_t* words = task.words + 4 * (row * task.row_words + word);
          const double* x = task.x + t * columns + word_bits * word;
          double* y = task.y + t * task.rows + row;
          if (task.targets - t >= group) {
            add_row<group>(words, n_words, x, columns, y, task.rows);
          } else {
            for (std::int64_t one = 0; one < task.targets - t; ++one) {
              add_row<1>(words, n_words, x + one * columns, columns, y + one * task.rows, task.rows);
            }
          }
        }
      }
    }
  }
}

// Adds to y [32 * count] the values x [rows] of the rows whose bits are set, in their order.
template <int count>
void add_columns(const std::uint8_t* words, std::int64_t row_words, std::int64_t rows, const double* x, double* y) {
  Vec sums[count][vectors_per_word];
  for (int w = 0; w < count; ++w) {
    for (int v = 0; v < vectors_per_word; ++v) sums[w][v] = load(y + word_bits * w + lanes * v);
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    const Vec value = broadcast(x[r]);
    for (int w = 0; w < count; ++w) {
      const std::uint32_t word = load_word(words + 4 * (r * row_words + w));
      for (int v = 0; v < vectors_per_word; ++v) sums[w][v] = add_where(word >> (lanes * v), sums[w][v], value);
    }
  }
  for (int w = 0; w < count; ++w) {
    for (int v = 0; v < vectors_per_word; ++v) store(y + word_bits * w + lanes * v, sums[w][v]);
  }
}

void add_lines(const BitsLinear& task, std::int64_t begin, std::int64_t end) {
  const std::int64_t columns = word_bits * task.row_words;
  for (std::int64_t line = begin; line < end; ++line) {
    const std::int64_t from = line * line_words;
    const std::int64_t to = from + line_words < task.row_words ? from + line_words : task.row_words;
    for (std::int64_t t = 0; t < task.targets; ++t) {
      std::memset(task.y + t * columns + word_bits * from, 0, sizeof(double) * word_bits * (to - from));
    }
    for (std::int64_t row = 0; row < task.rows; row += block_rows) {
      const std::int64_t rows = task.rows - row < block_rows ? task.rows - row : block_rows;
      for (std::int64_t t = 0; t < task.targets; ++t) {
        const double* x = task.x + t * task.rows + row;
        std::int64_t word = from;
        for (; word + words_at_once <= to; word += words_at_once) {
          const std::uint8_t* words = task.words + 4 * (row * task.row_words + word);
          add_columns<words_at_once>(words, task.row_words, rows, x, task.y + t * columns + word_bits * word);
        }
        for (; word < to; ++word) {
          const std::uint8_t* words = task.words + 4 * (row * task.row_words + word);
          add_columns<1>(words, task.row_words, rows, x, task.y + t * columns + word_bits * word);
        }
      }
    }
  }
}

}  // namespace

void bits_linear(const BitsLinear& task, std::int64_t begin, std::int64_t end) noexcept {
  task.transposed ? add_lines(task, begin, end) : add_rows(task, begin, end);
}

}  // namespace cad_fast::CAD_FAST_TARGET
