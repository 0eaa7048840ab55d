// float32 weights: plain multiply-adds, as tensor cores would round the operands to 11 bits.
#pragma once

#include "ablations.cuh"

namespace cad_fast::cuda {

// Four elements of the sum, from `depth` on, of one output of the tile.
template <class Tile>
__device__ __forceinline__ float4 load_four(const float* weight, int output, int depth) {
  if constexpr (Tile::transposed) {
    const float* first = weight + depth * Tile::weight_stride + output;
    return {first[0], first[Tile::weight_stride], first[2 * Tile::weight_stride], first[3 * Tile::weight_stride]};
  } else {
    return *reinterpret_cast<const float4*>(weight + output * Tile::weight_stride + depth);
  }
}

__device__ __forceinline__ void add_products(float& sum, const float4& a, const float4& b) {
  sum = fmaf(a.x, b.x, sum);
  sum = fmaf(a.y, b.y, sum);
  sum = fmaf(a.z, b.z, sum);
  sum = fmaf(a.w, b.w, sum);
}

template <int rows, int columns>
__device__ __forceinline__ void add_sums(float (&sums)[rows][columns], const float (&more)[rows][columns]) {
#pragma unroll
  for (int r = 0; r < rows; ++r) {
#pragma unroll
    for (int c = 0; c < columns; ++c) sums[r][c] += more[r][c];
  }
}

// A thread has every 16th output and every 8th row of the tile, which the block has ablated in shared memory.
template <class Tile, class Ablation, class Arguments>
__global__ void __launch_bounds__(block_threads, 2) fma_linear(const Linear task, const Arguments arguments) {
  constexpr int outputs = Tile::outer / 16, rows = Tile::rows / 8;
  Ablation ablation(task, arguments);
  const int outer = static_cast<int>(blockIdx.y) * Tile::outer;
  const int own_output = threadIdx.x % 16, own_row = threadIdx.x / 16;
  float sums[rows][outputs] = {};
  for_each_depth<Tile>(task, ablation, outer, [&](const Stage<Tile, Ablation>& stage, int) {
    float own[rows][outputs] = {};  // a sum of sums is off by less than one long sum
#pragma unroll 2
    for (int depth = 0; depth < Tile::depth; depth += 4) {
      float4 weights[outputs];
#pragma unroll
      for (int o = 0; o < outputs; ++o) weights[o] = load_four<Tile>(stage.weight, own_output + 16 * o, depth);
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        const float4 x = *reinterpret_cast<const float4*>(stage.x + (own_row + 8 * r) * Tile::x_stride + depth);
#pragma unroll
        for (int o = 0; o < outputs; ++o) add_products(own[r][o], weights[o], x);
      }
    }
    add_sums(sums, own);
  });
  const float* bias = static_cast<const float*>(task.bias);
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    if (own_row + 8 * r >= ablation.rows(0)) continue;
    float* y = static_cast<float*>(task.y) + (ablation.first_row(0) + own_row + 8 * r) * task.outer;
#pragma unroll
    for (int o = 0; o < outputs; ++o) {
      const int output = outer + own_output + 16 * o;
      if (output < task.outer) y[output] = sums[r][o] + (bias != nullptr ? bias[output] : 0.0f);
    }
  }
}

}  // namespace cad_fast::cuda
