#pragma once

#include "bits.h"
#include "runtime/kernel.h"

namespace cad_fast {

// Counts are made in square tiles of so many rows, over so many words at a time: two panels of 128 KiB stay in L2.
constexpr std::int64_t gram_tile = 64;
constexpr std::int64_t gram_depth = 512;

// Bytes of scratch of one thread: both panels, and the counts of the tile.
constexpr std::int64_t gram_scratch_bytes = 2 * gram_tile * gram_depth * 4 + gram_tile * gram_tile * 4;

struct GramBits {
  const std::uint8_t* words;  // [rows, row_words], 32 bits each
  std::int64_t rows, row_words;
  std::int32_t* counts;  // [rows, rows]
};

// Writes the tile at rows [64 * i, ...) and columns [64 * j, ...), and its mirror image. The scratch is aligned to 64
// bytes and the thread's own.
using GramBitsKernel = void(const GramBits& task, std::int64_t i, std::int64_t j, std::uint8_t* scratch) noexcept;

CAD_FAST_DECLARE_KERNEL(gram_bits, GramBitsKernel)

}  // namespace cad_fast
