// edited_linear: groups of rows, each under its own sparse edit (cad_fast/ops/edited_linear.py defines it).
#include <algorithm>

#include "api.h"
#include "fma_linear.cuh"
#include "mma_linear.cuh"

namespace cad_fast::cuda {
namespace {

constexpr int outer_tile = 128;
constexpr int few_rows = 16;
constexpr int many_rows_of_16_bits = 128;
constexpr int many_rows_of_32_bits = 64;

struct EditBounds {  // the entries of an edit
  int begin;
  int end;
};

// Outputs or elements in a part of a row of the weight: a row's entries in the tile's columns are looked up by part.
int parts_of(std::int64_t k, int transposed) {
  return transposed ? static_cast<int>((k + outer_tile - 1) / outer_tile) : 1;
}

__global__ void __launch_bounds__(block_threads) find_positions(const EditBounds* bounds, const std::int64_t* indices,
                                                                int n, int k, int parts, std::int64_t count,
                                                                int* positions) {
  const std::int64_t i = std::int64_t{blockIdx.x} * block_threads + threadIdx.x;
  if (i >= count) return;
  const std::int64_t group = i / n / (parts + 1);
  const int part = static_cast<int>(i / n % (parts + 1)), row = static_cast<int>(i % n);
  const std::int64_t wanted = std::int64_t{row} * k + (part == parts ? k : part * outer_tile);
  int low = bounds[group].begin, high = bounds[group].end;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (indices[middle] < wanted) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  positions[i] = low;
}

template <class Tile>
constexpr int edited_bytes = Tile::stages * stage_bytes<Tile, EditedTile<Tile>>;

template <class Tile>
int start(void (*kernel)(Linear, Edits), const Linear& task, const Edits& edits, std::int64_t tiles, void* stream) {
  static_assert(Tile::outer == outer_tile && edited_bytes<Tile> <= most_shared_bytes);
  const int outer_blocks = (task.outer + Tile::outer - 1) / Tile::outer;
  if (!grid_fits(tiles, outer_blocks)) return too_large;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(outer_blocks));
  return launch(kernel, grid, block_threads, edited_bytes<Tile>, stream, task, edits);
}

template <class Tile>
int start_mma(const Linear& task, const Edits& edits, std::int64_t tiles, void* stream) {
  return start<Tile>(mma_linear<Tile, EditedTile<Tile>, Edits>, task, edits, tiles, stream);
}

template <class Tile>
int start_fma(const Linear& task, const Edits& edits, std::int64_t tiles, void* stream) {
  return start<Tile>(fma_linear<Tile, EditedTile<Tile>, Edits>, task, edits, tiles, stream);
}

template <class T, bool transposed>
int run(const Linear& task, const Edits& edits, std::int64_t tiles, bool few, void* stream) {
  if constexpr (sizeof(T) == 4) {
    if (few) return start_fma<Tile<T, few_rows, 1, outer_tile, 32, 3, transposed>>(task, edits, tiles, stream);
    return start_fma<Tile<T, many_rows_of_32_bits, 1, outer_tile, 32, 2, transposed>>(task, edits, tiles, stream);
  } else {
    if (few) return start_mma<Tile<T, few_rows, 1, outer_tile, 64, 3, transposed>>(task, edits, tiles, stream);
    return start_mma<Tile<T, many_rows_of_16_bits, 1, outer_tile, 32, 3, transposed>>(task, edits, tiles, stream);
  }
}

int find(const Edits& edits, const EditBounds* bounds, std::int64_t count, int* positions, void* stream) {
  if (count == 0) return 0;
  const std::int64_t blocks = (count + block_threads - 1) / block_threads;
  if (!grid_fits(blocks, 1)) return too_large;
  return launch(find_positions, dim3(static_cast<unsigned>(blocks)), block_threads, 0, stream, bounds, edits.indices,
                edits.n, edits.k, edits.parts, count, positions);
}

}  // namespace
}  // namespace cad_fast::cuda

int cad_fast_cuda_plan_edits(const std::int64_t* rows, const std::int64_t* offsets, std::int64_t groups, int dtype,
                             std::int32_t* plan, std::int64_t* sizes) {
  using namespace cad_fast::cuda;
  if (!sizes_fit({rows[groups], offsets[groups], groups})) return too_large;
  std::int64_t most = 0, tiles = 0, edits = 0;
  for (std::int64_t g = 0; g < groups; ++g) most = std::max(most, rows[g + 1] - rows[g]);
  const std::int64_t many = dtype == 0 ? many_rows_of_32_bits : many_rows_of_16_bits;
  const std::int64_t tile_rows = most <= few_rows ? few_rows : many;
  std::int32_t* next = plan;
  for (std::int64_t g = 0; g < groups; ++g) {
    if (rows[g] == rows[g + 1]) continue;
    const bool plain = offsets[g] == offsets[g + 1];
    for (std::int64_t row = rows[g]; row < rows[g + 1]; row += tile_rows, ++tiles) {
      if (plan == nullptr) continue;
      *next++ = plain ? -1 : static_cast<std::int32_t>(edits);
      *next++ = static_cast<std::int32_t>(row);
      *next++ = static_cast<std::int32_t>(std::min(tile_rows, rows[g + 1] - row));
    }
    edits += !plain;
  }
  for (std::int64_t g = 0; plan != nullptr && g < groups; ++g) {
    if (rows[g] == rows[g + 1] || offsets[g] == offsets[g + 1]) continue;
    *next++ = static_cast<std::int32_t>(offsets[g]);
    *next++ = static_cast<std::int32_t>(offsets[g + 1]);
  }
  sizes[0] = tiles;
  sizes[1] = edits;
  sizes[2] = tile_rows == few_rows;
  return 0;
}

std::int64_t cad_fast_cuda_edit_positions(std::int64_t edits, std::int64_t n, std::int64_t k, int transposed) {
  return edits * (cad_fast::cuda::parts_of(k, transposed) + 1) * n;
}

int cad_fast_cuda_edited_linear(const void* x, const void* weight, const std::int32_t* plan, const std::int64_t* sizes,
                                const std::int64_t* indices, const float* factors, std::int32_t* positions,
                                const void* bias, void* y, std::int64_t n, std::int64_t k, int transposed, int dtype,
                                void* stream) {
  using namespace cad_fast::cuda;
  static_assert(sizeof(EditTile) == 12 && sizeof(EditBounds) == 8);
  const std::int64_t tiles = sizes[0], edited = sizes[1];
  if (tiles == 0 || (transposed ? k : n) == 0) return 0;
  if (!sizes_fit({n, k})) return too_large;
  Edits edits = {};
  edits.tiles = reinterpret_cast<const EditTile*>(plan);
  edits.positions = positions;
  edits.indices = indices;
  edits.factors = factors;
  edits.n = static_cast<int>(n);
  edits.k = static_cast<int>(k);
  edits.parts = parts_of(k, transposed);
  const auto* bounds = reinterpret_cast<const EditBounds*>(plan + 3 * tiles);
  const std::int64_t count = cad_fast_cuda_edit_positions(edited, n, k, transposed);
  if (const int error = find(edits, bounds, count, positions, stream); error != 0) return error;
  return for_type(dtype, transposed, [&](auto type, auto is_transposed) {
    using T = decltype(type);
    const Linear task = make_linear(x, weight, bias, y, n, k, transposed, sizeof(T));
    return run<T, is_transposed>(task, edits, tiles, sizes[2] != 0, stream);
  });
}
