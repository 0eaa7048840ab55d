#pragma once

#include "runtime/kernel.h"
#include "tiles.h"

namespace cad_fast {

// All arrays contiguous; grad, x and weight are float, or bfloat16 if `bfloat16` is set. `words` need not be aligned.
struct MaskedLinearScores {
  const void* grad;           // [variants, rows, n]
  const void* x;              // [variants, rows, k]
  const void* weight;         // [n, k]
  const std::uint8_t* words;  // [variants, n, words_for(k)]
  float* kept;                // [n, k]
  float* ablated;             // [n, k]
  std::int64_t variants, rows, n, k;
  bool bfloat16;
};

// A part of the output, begins being multiples of the tile: at most scores_max_n rows and scores_max_k columns.
struct ScoresBlock {
  std::int64_t n_begin, n_end, k_begin, k_end;
};

constexpr std::int64_t scores_tile_n = 4;   // output rows
constexpr std::int64_t scores_tile_k = 32;  // output columns: those of one word
constexpr std::int64_t scores_max_n = 128;
constexpr std::int64_t scores_max_k = 256;
constexpr std::int64_t scores_max_rows = 128;  // of grad and x, in one go

// Floats of scratch for one block: copies of the rows of grad and x, and the two sums of each output element.
constexpr std::int64_t scores_scratch =
    scores_max_rows * (scores_max_n + scores_max_k) + 2 * scores_max_n * scores_max_k;

// Adds to the block of kept and ablated. The scratch is aligned to 64 bytes.
using MaskedLinearScoresKernel = void(const MaskedLinearScores& problem, const ScoresBlock& block,
                                      float* scratch) noexcept;

CAD_FAST_DECLARE_KERNEL(masked_linear_scores, MaskedLinearScoresKernel)
CAD_FAST_DECLARE_TILE_KERNEL(masked_linear_scores, MaskedLinearScoresKernel)

// A tile's sums go through memory for each variant, which takes as long as the multiplications of some ten rows do without
// tiles. By count of instructions; no CPU has been measured.
constexpr bool tiles_suit(const MaskedLinearScores& problem) { return problem.bfloat16 && problem.rows >= tile_side; }

// With tiles a block begins at a multiple of 32 in both directions. Rows are packed with zeros up to a whole step of the unit.
constexpr std::int64_t scores_tile_rows = 256;

// Floats of scratch then: grad with rows along the sum, pairs of x, the sums of a variant, and those of either bit.
constexpr std::int64_t scores_tile_scratch = scores_max_n * (scores_tile_rows + tile_depth) / 2 +
                                             scores_max_k * scores_tile_rows / 2 + 3 * scores_max_n * scores_max_k;

}  // namespace cad_fast
