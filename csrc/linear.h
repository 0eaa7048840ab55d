// A product of rows with a weight that changes from row to row: what bindings and kernels of the linear ops share.
#pragma once

#include <cstdint>

#include "bits.h"

namespace cad_fast {

// Outputs in a panel of the weight, which is the unit that is packed and that a register tile spans.
constexpr std::int64_t panel_width = 32;

// y[r, o] = sum over i of x[r, i] * w_r[o, i] + bias[o], all contiguous; w_r is the weight as edited for row r.
struct Linear {
  const void* x;       // [rows, inner]
  const void* weight;  // [outer, inner], or [inner, outer] if transposed
  const void* bias;    // [outer] or null
  void* y;             // [rows, outer]
  std::int64_t rows;
  std::int64_t inner;
  std::int64_t outer;
  bool transposed;
  bool bf16;  // the type of all four tensors; float32 if not

  // The units of work are panels of outputs times chunks of rows; unit u is panel u % panels() of chunk u / panels().
  // How the rows are cut has no influence on the result.
  std::int64_t chunks;

  std::int64_t panels() const { return (outer + panel_width - 1) / panel_width; }
  std::int64_t first_row(std::int64_t chunk) const { return rows * chunk / chunks; }
};

// Panels packed at once. A tile of x is copied once for all of them, which with many rows is the more often the fewer they
// are; with few rows per variant they are read often, and should stay in a core's L2 cache.
constexpr std::int64_t block_panels = 12;

// Steps along the inner dimension packed at once. A step is one element, or a pair where the CPU multiplies pairs. The
// steps of a tile of x (at most 14 rows) fit a core's L1 cache.
constexpr std::int64_t block_steps = 384;

// Rows in a chunk, which bounds the float32 sums kept for bfloat16 outputs.
constexpr std::int64_t most_chunk_rows = 4096;

// No register tile is higher than this, whatever the instruction set.
constexpr std::int64_t most_tile_rows = 16;

// Bytes of scratch that a kernel needs besides what its op adds.
constexpr std::int64_t linear_scratch_bytes(std::int64_t chunk_rows, bool bf16) {
  const std::int64_t block = block_panels * panel_width;
  const std::int64_t packed = block * block_steps;
  const std::int64_t tile = most_tile_rows * (block_steps + 16);
  const std::int64_t sums = bf16 ? chunk_rows * block : 0;
  return 4 * (packed + tile + sums + most_tile_rows * block + block) + 64 * 8;
}

}  // namespace cad_fast
