#pragma once

#include "linear.h"
#include "runtime/kernel.h"
#include "tiles.h"

namespace cad_fast {

struct MaskedLinear : Linear {
  const std::uint32_t* words;  // [variants, n, ceil(k / 32)] for a weight [n, k]
  const float* factors;        // [variants] or null: what an ablated weight is multiplied by, else zero
  std::int64_t variant_rows;   // rows per variant
};

// Bytes of scratch besides linear_scratch_bytes: a block as a variant has it, its bits, and the words they come from.
constexpr std::int64_t masked_scratch_bytes =
    4 * block_panels * panel_width * block_steps + 8 * block_panels * block_steps + 4 * 2 * block_steps + 3 * 64;

// With few rows per variant dot products of pairs, which nobody has to pack, are faster than floats even where each pair
// takes longer (measured on Emerald Rapids).
constexpr bool reads_pairs_as_they_lie(const MaskedLinear& task) {
  return !task.transposed && task.variant_rows <= 3;
}

// The units [begin, end) of a masked product, see Linear. The scratch is aligned to 64 bytes and the thread's own.
using MaskedLinearKernel = void(const MaskedLinear& task, std::int64_t begin, std::int64_t end,
                                std::uint8_t* scratch) noexcept;

CAD_FAST_DECLARE_KERNEL(masked_linear, MaskedLinearKernel)
CAD_FAST_DECLARE_TILE_KERNEL(masked_linear, MaskedLinearKernel)

// With one row per variant, or two and long sums, dot products take no longer than the tile unit needs to be given the
// weight. By count of instructions; no CPU has been measured.
constexpr bool tiles_suit(const MaskedLinear& task) {
  const bool dots = task.variant_rows == 1 || (task.variant_rows == 2 && task.inner >= 1024 && task.factors == nullptr);
  return task.bf16 && (task.transposed || !dots);
}

// In words, the way in which masked_linear multiplies.
using MaskedLinearPath = const char*(const MaskedLinear& task) noexcept;

CAD_FAST_DECLARE_KERNEL(masked_linear_path, MaskedLinearPath)

}  // namespace cad_fast
