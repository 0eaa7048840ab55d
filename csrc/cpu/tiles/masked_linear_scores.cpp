#include "masked_linear_scores.h"

#include "cpu/product.h"
#include "cpu/tiles/turn.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

// Sixteen columns of two rows as pairs; zero where there is no column, or no second row.
__m512i pairs_of(const bfloat16* rows, std::int64_t stride, std::int64_t row_count, __mmask16 there) {
  const auto row = [&](std::int64_t r) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(r < row_count ? there : 0, rows + r * stride));
  };
  return _mm512_or_si512(row(0), _mm512_slli_epi32(row(1), 16));
}

// The sum along the rows of grad^T x, 32 by 32 tiles of it at a time, for one variant after the other. What a tile has come to
// is added to the sums of either bit, which stay where they are while the variants of a lot of rows go by.
class ScoreTiles {
 public:
  ScoreTiles(const MaskedLinearScores& problem, const ScoresBlock& block, float* memory)
      : problem_(problem),
        block_(block),
        n_tiles_(ceil_div(block.n_end - block.n_begin, side)),
        k_tiles_(ceil_div(block.k_end - block.k_begin, side)) {
    Scratch scratch(reinterpret_cast<std::uint8_t*>(memory));
    grad_ = scratch.take<bfloat16>(scores_max_n * grad_stride);
    x_ = scratch.take<bfloat16>(scores_max_k * scores_tile_rows);
    products_ = scratch.take<float>(scores_max_n * scores_max_k);
    sums_ = scratch.take<float>(2 * scores_max_n * scores_max_k);
  }

  void run() {
    std::memset(sums_, 0, static_cast<std::size_t>(n_tiles_ * k_tiles_ * 2 * side * side) * sizeof *sums_);
    const std::int64_t rows = problem_.rows, padded = padded_depth(rows);
    const std::int64_t together = padded < scores_tile_rows ? scores_tile_rows / padded : 1;
    for (std::int64_t variant = 0; variant < problem_.variants; variant += together) {
      const std::int64_t left = problem_.variants - variant;
      const std::int64_t count = left < together ? left : together;
      for (std::int64_t row = 0; row < rows; row += scores_tile_rows) {
        add_rows(variant, count, row, rows - row < scores_tile_rows ? rows - row : scores_tile_rows);
      }
    }
    for (std::int64_t i = 0; i < n_tiles_ * k_tiles_; ++i) finish(i);
  }

 private:
  static constexpr std::int64_t side = 2 * tile_side;
  static constexpr std::int64_t grad_stride = scores_tile_rows + tile_depth;  // no power of two, as tile_stride

  // So many rows, from `row` on, of each of these variants.
  void add_rows(std::int64_t variant, std::int64_t count, std::int64_t row, std::int64_t rows) {
    const std::int64_t padded = padded_depth(rows);
    for (std::int64_t i = 0; i < count; ++i) pack((variant + i) * problem_.rows + row, rows, i * padded);
    const bool first = row == 0, last = row + rows == problem_.rows;
    for (std::int64_t tile = 0; tile < n_tiles_ * k_tiles_; ++tile) {
      const std::int64_t n = tile / k_tiles_ * side, k = tile % k_tiles_ * side;
      const std::int64_t left = block_.n_end - block_.n_begin - n;
      for (std::int64_t i = 0; i < count; ++i) {
        const Factors factors{grad_ + n * grad_stride + i * padded, 2 * grad_stride,
                              x_ + i * padded * k_tiles_ * side + 2 * k, 4 * k_tiles_ * side, padded / tile_depth};
        multiply(tiles_, left < side ? left : side, side, factors, products_ + tile * side * side, !first);
        if (last) split(tile, variant + i);
      }
    }
  }

  // Rows of grad as [n][rows], and of x as [rows / 2][k][2], from the place `at` on along the rows; with zeros behind them.
  void pack(std::int64_t row, std::int64_t rows, std::int64_t at) {
    const auto* grad = static_cast<const bfloat16*>(problem_.grad) + row * problem_.n + block_.n_begin;
    const auto* x = static_cast<const bfloat16*>(problem_.x) + row * problem_.k + block_.k_begin;
    const std::int64_t columns = block_.n_end - block_.n_begin, x_columns = block_.k_end - block_.k_begin;
    for (std::int64_t r = 0; r < rows; r += tile_depth) {
      for (std::int64_t n = 0; n < columns; n += tile_side) {
        const auto there = static_cast<__mmask16>(first_elements(columns - n));
        __m512i words[16];
#pragma GCC unroll 16
        for (int p = 0; p < 16; ++p) {
          words[p] = pairs_of(grad + (r + 2 * p) * problem_.n + n, problem_.n, rows - r - 2 * p, there);
        }
        transpose_sixteen(words);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(grad_ + (n + i) * grad_stride + at + r, words[i]);
      }
      for (std::int64_t p = r; p < r + tile_depth; p += 2) {
        bfloat16* target = x_ + (at + p) * k_tiles_ * side;
        for (std::int64_t k = 0; k < k_tiles_ * side; k += tile_side) {
          const std::int64_t left = x_columns - k;
          const auto there = static_cast<__mmask16>(first_elements(left < 0 ? 0 : left));
          _mm512_storeu_si512(target + 2 * k, pairs_of(x + p * problem_.k + k, problem_.k, rows - p, there));
        }
      }
    }
  }

  // Adds a variant's tile where its bits say.
  void split(std::int64_t tile, std::int64_t variant) {
    const std::int64_t n = block_.n_begin + tile / k_tiles_ * side, k = block_.k_begin + tile % k_tiles_ * side;
    const std::int64_t row_words = words_for(problem_.k);
    const std::uint8_t* words = problem_.words + 4 * ((variant * problem_.n + n) * row_words + k / word_bits);
    const float* product = products_ + tile * side * side;
    float* sums = sums_ + tile * 2 * side * side;
    const std::int64_t rows = block_.n_end - n < side ? block_.n_end - n : side;
    for (std::int64_t i = 0; i < rows; ++i, words += 4 * row_words, product += side, sums += 2 * side) {
      const std::uint32_t word = load_word(words);
      for (int j = 0; j < 2; ++j) {
        const auto ablated = static_cast<__mmask16>(word >> (16 * j));
        float *of_kept = sums + 16 * j, *of_ablated = of_kept + side;
        const Vec own = load(product + 16 * j), kept = load(of_kept), removed = load(of_ablated);
        store(of_kept, _mm512_mask_add_ps(kept, _knot_mask16(ablated), kept, own));
        store(of_ablated, _mm512_mask_add_ps(removed, ablated, removed, own));
      }
    }
  }

  // Adds the weight times the sums to the results.
  void finish(std::int64_t tile) {
    const std::int64_t first = block_.n_begin + tile / k_tiles_ * side, k = block_.k_begin + tile % k_tiles_ * side;
    const float* sums = sums_ + tile * 2 * side * side;
    for (std::int64_t n = first; n < first + side && n < block_.n_end; ++n, sums += 2 * side) {
      for (std::int64_t j = 0; j < side && k + j < block_.k_end; j += 16) {
        const auto there = static_cast<__mmask16>(first_elements(block_.k_end - k - j));
        const std::int64_t at = n * problem_.k + k + j;
        const __m256i bits = _mm256_maskz_loadu_epi16(there, static_cast<const bfloat16*>(problem_.weight) + at);
        const Vec w = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
        const auto add_to = [&](float* target, const float* sum) {
          _mm512_mask_storeu_ps(target, there, multiply_add(w, load(sum), _mm512_maskz_loadu_ps(there, target)));
        };
        add_to(problem_.kept + at, sums + j);
        add_to(problem_.ablated + at, sums + side + j);
      }
    }
  }

  const MaskedLinearScores& problem_;
  const ScoresBlock& block_;
  std::int64_t n_tiles_, k_tiles_;
  bfloat16* grad_;
  bfloat16* x_;
  float* products_;  // of each tile: a variant's sums
  float* sums_;      // of each row of each tile: those kept, then those ablated
  Tiles tiles_;
};

}  // namespace

void masked_linear_scores(const MaskedLinearScores& problem, const ScoresBlock& block, float* scratch) noexcept {
  ScoreTiles(problem, block, scratch).run();
}

}  // namespace cad_fast::CAD_FAST_TARGET
