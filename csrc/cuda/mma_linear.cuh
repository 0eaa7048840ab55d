// 16-bit weights: tensor cores by mma.sync.m16n8k16, sums in float32.
//
// The weight is operand a, the rows of x are operand b: a warp holds its outputs' weights in registers and ablates them
// there, once per segment, whatever the number of rows.
#pragma once

#include "ablations.cuh"

namespace cad_fast::cuda {

template <class Tile>
struct MmaSums {
  static constexpr int outer_tiles = Tile::outer / 64, row_tiles = Tile::rows / 8;
  float of[Tile::segments][outer_tiles][row_tiles][4];
};

// Weights of 16 outputs from `first` on and 16 elements of the sum from `depth` on, as operand a.
template <class Tile>
__device__ __forceinline__ void load_weights(std::uint32_t (&to)[4], const typename Tile::Type* weight, int first,
                                             int depth) {
  const int lane = threadIdx.x % 32;
  if constexpr (Tile::transposed) {
    const int element = depth + lane % 8 + lane / 16 * 8, output = first + lane / 8 % 2 * 8;
    load_matrices<true>(to, weight + element * Tile::weight_stride + output);
  } else {
    const int output = first + lane % 16, element = depth + lane / 16 * 8;
    load_matrices<false>(to, weight + output * Tile::weight_stride + element);
  }
}

template <class Tile, class Ablation>
__device__ __forceinline__ void multiply_lot(MmaSums<Tile>& sums, const Stage<Tile, Ablation>& stage,
                                             const Ablation& ablation, int inner) {
  using T = typename Tile::Type;
  constexpr int outer_tiles = MmaSums<Tile>::outer_tiles, row_tiles = MmaSums<Tile>::row_tiles;
  constexpr bool in_registers = Ablation::words_per_stage > 0;
  const int lane = threadIdx.x % 32, first = static_cast<int>(threadIdx.x) / 32 * 16 * outer_tiles;
#pragma unroll 1
  for (int depth = 0; depth < Tile::depth; depth += 32) {
    std::uint32_t weights[2][outer_tiles][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int tile = 0; tile < outer_tiles; ++tile) {
        load_weights<Tile>(weights[half][tile], stage.weight, first + 16 * tile, depth + 16 * half);
      }
    }
#pragma unroll
    for (int segment = 0; segment < Tile::segments; ++segment) {
      const int rows = ablation.rows(segment);
      if (rows == 0) continue;  // the same for all threads
      std::uint32_t a[2][outer_tiles][4];
      if constexpr (in_registers) {
        const typename Ablation::Bits bits = ablation.bits(stage.words, segment, depth, inner + depth);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int tile = 0; tile < outer_tiles; ++tile) {
            ablation.ablate(a[half][tile], weights[half][tile], bits, segment, tile, half);
          }
        }
      }
      const auto& own = in_registers ? a : weights;
#pragma unroll
      for (int tile = 0; tile < row_tiles; ++tile) {
        if (8 * tile >= rows) continue;
        std::uint32_t b[4];
        const int row = segment * Tile::rows + 8 * tile + lane % 8;
        load_matrices<false>(b, stage.x + row * Tile::x_stride + depth + lane / 8 * 8);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int out = 0; out < outer_tiles; ++out) {
            multiply(T{}, sums.of[segment][out][tile], own[half][out], b[2 * half], b[2 * half + 1]);
          }
        }
      }
    }
  }
}

// Adds the bias, turns the sums by way of shared memory, and writes rows of y.
template <class Tile, class Ablation>
__device__ __forceinline__ void write_sums(const Linear& task, const Ablation& ablation, const MmaSums<Tile>& sums,
                                           int outer) {
  using T = typename Tile::Type;
  constexpr int outer_tiles = MmaSums<Tile>::outer_tiles, row_tiles = MmaSums<Tile>::row_tiles;
  constexpr int stride = Tile::outer + 8, per_row = Tile::outer / 8;
  static_assert(Tile::segments * Tile::rows * stride * 2 <= Tile::stages * (Tile::weight_bytes + Tile::x_bytes));
  T* turned = reinterpret_cast<T*>(shared_memory());
  const int lane = threadIdx.x % 32, first = static_cast<int>(threadIdx.x) / 32 * 16 * outer_tiles + lane / 4;
  const T* bias = static_cast<const T*>(task.bias);
#pragma unroll
  for (int out = 0; out < outer_tiles; ++out) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // output g + 8 * (i / 2), row 2t + i % 2
      const int output = first + 16 * out + i / 2 * 8;
      const float added = bias != nullptr && outer + output < task.outer ? to_float(bias[outer + output]) : 0.0f;
#pragma unroll
      for (int segment = 0; segment < Tile::segments; ++segment) {
#pragma unroll
        for (int tile = 0; tile < row_tiles; ++tile) {
          const int row = segment * Tile::rows + 8 * tile + lane % 4 * 2 + i % 2;
          turned[row * stride + output] = from_float<T>(sums.of[segment][out][tile][i] + added);
        }
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < Tile::segments * Tile::rows * per_row; i += block_threads) {
    const int row = i / per_row, segment = row / Tile::rows, column = outer + i % per_row * 8;
    if (row % Tile::rows >= ablation.rows(segment) || column >= task.outer) continue;
    T* y = static_cast<T*>(task.y) + (ablation.first_row(segment) + row % Tile::rows) * task.outer + column;
    const T* from = turned + row * stride + i % per_row * 8;
    if (task.y_vectors) {
      *reinterpret_cast<uint4*>(y) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int e = 0; e < 8 && column + e < task.outer; ++e) y[e] = from[e];
    }
  }
}

template <class Tile, class Ablation, class Arguments>
__global__ void __launch_bounds__(block_threads, 2) mma_linear(const Linear task, const Arguments arguments) {
  Ablation ablation(task, arguments);
  const int outer = static_cast<int>(blockIdx.y) * Tile::outer;
  MmaSums<Tile> sums = {};
  for_each_depth<Tile>(task, ablation, outer, [&](const Stage<Tile, Ablation>& stage, int inner) {
    multiply_lot(sums, stage, ablation, inner);
  });
  write_sums(task, ablation, sums, outer);
}

}  // namespace cad_fast::cuda
