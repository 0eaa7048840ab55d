// Products of bfloat16 on the tile unit (AMX): what bindings and kernels share. One instruction adds to a tile of 16 x 16
// sums the products of 16 rows with 16 columns, 32 elements of each.
#pragma once

#include "linear.h"

namespace cad_fast {

constexpr std::int64_t tile_side = 16;   // rows of a tile, and columns of a tile of sums
constexpr std::int64_t tile_depth = 32;  // elements along the sum

// Elements along the sum that are worked on at a time: so many of 32 outputs, and of 32 rows of x, are 32 KiB each.
constexpr std::int64_t tile_block = 512;

// Rows of one segment (a variant, or a group with one edit) that are multiplied together. A strip of 16 rows or fewer is
// half as wide.
constexpr std::int64_t strip_rows = 2 * tile_side;

// Strips that share what is made of a panel of the weight: their sums, and x as it is packed for them, stay in a core's L2.
constexpr std::int64_t most_strips = 32;
constexpr std::int64_t most_strip_bytes = std::int64_t{1} << 20;

struct Strip {
  std::int64_t row, segment;
  std::int64_t rows;   // strip_rows at most
  std::int64_t width;  // tile_side or strip_rows: what of x is packed
  std::int64_t x;      // where that is, in elements
};

// Bytes between rows of a block of the weight: not a multiple of 4096, or rows of a tile would lie in a few cache sets.
constexpr std::int64_t tile_stride = 2 * (tile_block + tile_depth);

constexpr std::int64_t padded_depth(std::int64_t inner) { return ceil_div(inner, tile_depth) * tile_depth; }

// x is packed only where the weight is not transposed.
constexpr std::int64_t strip_bytes(const Linear& task) {
  return task.transposed ? 0 : 2 * strip_rows * padded_depth(task.inner);
}

constexpr std::int64_t strips_at_once(const Linear& task) {
  const std::int64_t bytes = strip_bytes(task);
  const std::int64_t most = bytes == 0 ? most_strips : most_strip_bytes / bytes;
  return most < 1 ? 1 : most < most_strips ? most : most_strips;
}

// Bytes of scratch besides what an op adds: of each strip itself, its sums and x; a block of the weight; a step of x.
constexpr std::int64_t tile_scratch_bytes(const Linear& task) {
  const std::int64_t strip = sizeof(Strip) + 4 * strip_rows * panel_width + strip_bytes(task);
  return strips_at_once(task) * strip + panel_width * tile_stride + 2 * strip_rows * tile_depth + 5 * 64;
}

}  // namespace cad_fast
