// masked_linear: rows of many variants, each under its own packed mask (cad_fast/ops/masked_linear.py defines it).
#include "api.h"
#include "fma_linear.cuh"
#include "mma_linear.cuh"

namespace cad_fast::cuda {
namespace {

// float32 with a few rows per variant: a thread has one output, half of the variants, and all their rows. The weight's
// elements are ablated in registers, as there is one thread for each.
template <class Tile>
__global__ void __launch_bounds__(block_threads, 2) fma_linear_of_few(const Linear task, const Masks masks) {
  using Ablation = MaskedFew<Tile>;
  constexpr int own_segments = Tile::segments / 2;
  Ablation ablation(task, masks);
  const int outer = static_cast<int>(blockIdx.y) * Tile::outer;
  const int output = threadIdx.x % Tile::outer, first_segment = threadIdx.x / Tile::outer * own_segments;
  const int rows = ablation.rows(0);  // all that have any have as many
  float factors[own_segments];
#pragma unroll
  for (int s = 0; s < own_segments; ++s) factors[s] = ablation.factor(first_segment + s);
  float sums[own_segments][Tile::rows] = {};
  for_each_depth<Tile>(task, ablation, outer, [&](const Stage<Tile, Ablation>& stage, int inner) {
    float own[own_segments][Tile::rows] = {};
#pragma unroll 2
    for (int depth = 0; depth < Tile::depth; depth += 4) {
      const float4 weights = load_four<Tile>(stage.weight, output, depth);
#pragma unroll
      for (int s = 0; s < own_segments; ++s) {
        const int segment = first_segment + s;
        const float4 ablated = ablation.ablated(weights, factors[s], stage.words, segment, output, depth, inner);
        const float* x = stage.x + segment * Tile::rows * Tile::x_stride + depth;
#pragma unroll
        for (int r = 0; r < Tile::rows; ++r) {
          if (r < rows) add_products(own[s][r], ablated, *reinterpret_cast<const float4*>(x + r * Tile::x_stride));
        }
      }
    }
    add_sums(sums, own);
  });
  if (outer + output >= task.outer) return;
  const float added = task.bias != nullptr ? static_cast<const float*>(task.bias)[outer + output] : 0.0f;
#pragma unroll
  for (int s = 0; s < own_segments; ++s) {
#pragma unroll
    for (int r = 0; r < Tile::rows; ++r) {
      if (r >= ablation.rows(first_segment + s)) continue;
      const std::int64_t row = ablation.first_row(first_segment + s) + r;
      static_cast<float*>(task.y)[row * task.outer + outer + output] = sums[s][r] + added;
    }
  }
}

template <class Tile>
int start(void (*kernel)(Linear, Masks), const Linear& task, Masks masks, int shared_bytes, void* stream) {
  masks.row_tiles = (masks.rows + Tile::rows - 1) / Tile::rows;
  const std::int64_t blocks = (masks.variants + std::int64_t{Tile::segments} - 1) / Tile::segments * masks.row_tiles;
  const int outer_blocks = (task.outer + Tile::outer - 1) / Tile::outer;
  if (!grid_fits(blocks, outer_blocks)) return too_large;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(outer_blocks));
  return launch(kernel, grid, block_threads, shared_bytes, stream, task, masks);
}

template <class Tile>
int start_mma(const Linear& task, const Masks& masks, void* stream) {
  using Ablation = MaskedRegisters<Tile>;
  constexpr int bytes = Tile::stages * stage_bytes<Tile, Ablation>;
  static_assert(bytes <= most_shared_bytes);
  return start<Tile>(mma_linear<Tile, Ablation, Masks>, task, masks, bytes, stream);
}

template <class Tile>
int start_fma(const Linear& task, const Masks& masks, void* stream) {
  using Ablation = MaskedTile<Tile>;
  constexpr int bytes = Tile::stages * stage_bytes<Tile, Ablation>;
  static_assert(bytes <= most_shared_bytes);
  return start<Tile>(fma_linear<Tile, Ablation, Masks>, task, masks, bytes, stream);
}

template <class Tile>
int start_few(const Linear& task, const Masks& masks, void* stream) {
  constexpr int bytes = Tile::stages * stage_bytes<Tile, MaskedFew<Tile>>;
  static_assert(bytes <= most_shared_bytes);
  return start<Tile>(fma_linear_of_few<Tile>, task, masks, bytes, stream);
}

template <class T, bool transposed>
int run(const Linear& task, const Masks& masks, void* stream) {
  if constexpr (sizeof(T) == 4) {
    if (masks.rows == 1) return start_few<Tile<T, 1, 8, 64, 32, 3, transposed>>(task, masks, stream);
    if (masks.rows <= 8) return start_few<Tile<T, 8, 8, 64, 32, 3, transposed>>(task, masks, stream);
    if (masks.rows <= 32) return start_fma<Tile<T, 32, 1, 128, 32, 3, transposed>>(task, masks, stream);
    return start_fma<Tile<T, 64, 1, 128, 32, 2, transposed>>(task, masks, stream);
  } else {
    if (masks.rows <= 8) return start_mma<Tile<T, 8, 8, 64, 64, 3, transposed>>(task, masks, stream);
    if (masks.rows <= 16) return start_mma<Tile<T, 16, 4, 64, 64, 3, transposed>>(task, masks, stream);
    if (masks.rows <= 64) return start_mma<Tile<T, 64, 2, 128, 32, 3, transposed>>(task, masks, stream);
    return start_mma<Tile<T, 128, 1, 128, 32, 3, transposed>>(task, masks, stream);
  }
}

}  // namespace
}  // namespace cad_fast::cuda

int cad_fast_cuda_masked_linear(const void* x, const void* weight, const std::uint32_t* words, const void* bias,
                                const float* factors, void* y, std::int64_t variants, std::int64_t rows, std::int64_t n,
                                std::int64_t k, int transposed, int dtype, void* stream) {
  using namespace cad_fast::cuda;
  if (variants == 0 || rows == 0 || (transposed ? k : n) == 0) return 0;
  if (!sizes_fit({variants, rows, n, k})) return too_large;
  Masks masks = {};
  masks.words = words;
  masks.factors = factors;
  masks.variants = static_cast<int>(variants);
  masks.rows = static_cast<int>(rows);
  masks.row_words = static_cast<int>((k + 31) / 32);
  masks.n = static_cast<int>(n);
  return for_type(dtype, transposed, [&](auto type, auto is_transposed) {
    using T = decltype(type);
    const Linear task = make_linear(x, weight, bias, y, n, k, transposed, sizeof(T));
    return run<T, is_transposed>(task, masks, stream);
  });
}
