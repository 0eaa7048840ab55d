// A product of rows with a weight that changes from one group of rows to another: what all kernels share.
#pragma once

#include <cstdint>

#include "device.h"

namespace cad_fast::cuda {

constexpr int block_threads = 128;

// y[r, o] = sum over i of x[r, i] * w_r[o, i] + bias[o], all contiguous; w_r is the weight as ablated for row r.
struct Linear {
  const void* x;       // [rows, inner]
  const void* weight;  // [n, k]: [outer, inner], or [inner, outer] if transposed
  const void* bias;    // [outer] or null
  void* y;             // [rows, outer]
  int inner;
  int outer;
  bool x_vectors;  // rows of x, of the weight, of y begin at multiples of 16 bytes
  bool weight_vectors;
  bool y_vectors;
};

// Sizes of a tile. A block multiplies `outer` outputs of the weight with `segments` runs of up to `rows` rows, every run
// under its own ablation, and takes `depth` elements of the sum at a time, of which `stages` lots are under way.
template <class T, int rows_, int segments_, int outer_, int depth_, int stages_, bool transposed_>
struct Tile {
  using Type = T;
  static constexpr int rows = rows_, segments = segments_, outer = outer_, depth = depth_, stages = stages_;
  static constexpr bool transposed = transposed_;
  static constexpr int vector = 16 / sizeof(T);

  // The weight lies as in memory. The padding spreads rows over the banks, and keeps them aligned.
  static constexpr int weight_rows = transposed ? depth : outer, weight_columns = transposed ? outer : depth;
  static constexpr int weight_stride = weight_columns + vector;
  static constexpr int x_stride = depth + vector;
  static constexpr int weight_bytes = weight_rows * weight_stride * int(sizeof(T));
  static constexpr int x_bytes = segments * rows * x_stride * int(sizeof(T));
  static constexpr int word_columns = weight_columns / 32;
  static constexpr int words = weight_rows * word_columns;  // of one segment
  static_assert(depth % 32 == 0 && outer % 32 == 0);
};

template <class Tile, class Ablation>
constexpr int stage_bytes = Tile::weight_bytes + Tile::x_bytes + Ablation::words_per_stage * 4;

// Copies ROWS x COLUMNS elements of a matrix from its column `first` on, zeros where it has none. row_of(r) is where
// row r of the tile lies, or null; `anywhere` is any address that can be read.
template <int ROWS, int COLUMNS, int STRIDE, class T, class RowOf>
__device__ __forceinline__ void copy_tile(T* to, RowOf row_of, int first, int columns, bool vectors,
                                          const void* anywhere) {
  constexpr int size = 16 / sizeof(T), per_row = COLUMNS / size;
  for (int i = threadIdx.x; i < ROWS * per_row; i += block_threads) {
    const int r = i / per_row, c = i % per_row * size;
    const T* row = row_of(r);
    T* place = to + r * STRIDE + c;
    if (vectors) {
      const bool inside = row != nullptr && first + c < columns;
      copy_async<16>(place, inside ? static_cast<const void*>(row + first + c) : anywhere, inside);
    } else {
      for (int e = 0; e < size; ++e) {
        place[e] = row != nullptr && first + c + e < columns ? row[first + c + e] : T{};
      }
    }
  }
}

// The weight's tile from output `outer` and element `inner` on.
template <class Tile>
__device__ __forceinline__ void copy_weight(const Linear& task, typename Tile::Type* to, int outer, int inner) {
  using T = typename Tile::Type;
  const T* weight = static_cast<const T*>(task.weight);
  const int first_row = Tile::transposed ? inner : outer, first_column = Tile::transposed ? outer : inner;
  const int rows = Tile::transposed ? task.inner : task.outer, columns = Tile::transposed ? task.outer : task.inner;
  const auto row_of = [=](int r) -> const T* {
    return first_row + r < rows ? weight + std::int64_t{first_row + r} * columns : nullptr;
  };
  copy_tile<Tile::weight_rows, Tile::weight_columns, Tile::weight_stride>(to, row_of, first_column, columns,
                                                                          task.weight_vectors, weight);
}

// The rows of x of all segments, from element `inner` on.
template <class Tile, class Ablation>
__device__ __forceinline__ void copy_x(const Linear& task, const Ablation& ablation, typename Tile::Type* to,
                                       int inner) {
  using T = typename Tile::Type;
  const T* x = static_cast<const T*>(task.x);
  const auto row_of = [&](int r) -> const T* {
    const int segment = r / Tile::rows, own = r % Tile::rows;
    return own < ablation.rows(segment) ? x + (ablation.first_row(segment) + own) * task.inner : nullptr;
  };
  copy_tile<Tile::segments * Tile::rows, Tile::depth, Tile::x_stride>(to, row_of, inner, task.inner, task.x_vectors, x);
}

// Where a stage's parts lie in shared memory.
template <class Tile, class Ablation>
struct Stage {
  typename Tile::Type* weight;
  typename Tile::Type* x;
  std::uint32_t* words;

  __device__ __forceinline__ explicit Stage(int stage) {
    unsigned char* memory = shared_memory() + stage * stage_bytes<Tile, Ablation>;
    weight = reinterpret_cast<typename Tile::Type*>(memory);
    x = reinterpret_cast<typename Tile::Type*>(memory + Tile::weight_bytes);
    words = reinterpret_cast<std::uint32_t*>(memory + Tile::weight_bytes + Tile::x_bytes);
  }
};

// Calls compute(stage, inner) for all lots of the sum, while the copies of later ones are under way. At the end no copy
// is, and no thread reads shared memory any more.
template <class Tile, class Ablation, class Compute>
__device__ __forceinline__ void for_each_depth(const Linear& task, Ablation& ablation, int outer, Compute compute) {
  const int lots = (task.inner + Tile::depth - 1) / Tile::depth;
  const auto begin = [&](int lot) {
    if (lot < lots) {
      const Stage<Tile, Ablation> stage(lot % Tile::stages);
      copy_weight<Tile>(task, stage.weight, outer, lot * Tile::depth);
      copy_x<Tile>(task, ablation, stage.x, lot * Tile::depth);
      ablation.copy(stage.words, outer, lot * Tile::depth);
    }
    close_copies();  // empty groups too, so that the count of groups under way says which lot has arrived
  };
  for (int lot = 0; lot < Tile::stages - 1; ++lot) begin(lot);
  for (int lot = 0; lot < lots; ++lot) {
    wait_copies<Tile::stages - 2>();
    __syncthreads();  // all threads' copies of this lot are there, and all are done with the lot before
    begin(lot + Tile::stages - 1);
    const Stage<Tile, Ablation> stage(lot % Tile::stages);
    if (ablation.patch(stage.weight, stage.words, outer, lot * Tile::depth)) __syncthreads();
    compute(stage, lot * Tile::depth);
  }
  wait_copies<0>();
  __syncthreads();
}

// The product, rounded to the weight's type.
template <class T>
__device__ __forceinline__ T scaled(T weight, T factor) {
  return from_float<T>(to_float(weight) * to_float(factor));
}

inline bool aligned(const void* pointer, std::int64_t row_bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0 && row_bytes % 16 == 0;
}

inline Linear make_linear(const void* x, const void* weight, const void* bias, void* y, std::int64_t n, std::int64_t k,
                          bool transposed, int element_bytes) {
  Linear task;
  task.x = x;
  task.weight = weight;
  task.bias = bias;
  task.y = y;
  task.inner = static_cast<int>(transposed ? n : k);
  task.outer = static_cast<int>(transposed ? k : n);
  task.x_vectors = aligned(x, task.inner * std::int64_t{element_bytes});
  task.weight_vectors = aligned(weight, k * element_bytes);
  task.y_vectors = aligned(y, task.outer * std::int64_t{element_bytes});
  return task;
}

}  // namespace cad_fast::cuda
