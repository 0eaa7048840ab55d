// 16-bit weights on Hopper: as mma_linear.cuh, by the instructions of a warpgroup, which work on their own while the
// threads ablate the next weights.
#pragma once

#include "ablations.cuh"
#include "wgmma.cuh"

namespace cad_fast::cuda {

constexpr int wide_threads = 256;  // two warpgroups, each with half of the outputs

// Sizes of a tile: `segments` runs of up to `rows` rows of x, each under its own mask, by 128 outputs of the weight.
template <class T, int rows_, int segments_, int stages_, bool transposed_, bool with_factors_>
struct WideTile {
  using Type = T;
  static constexpr int rows = rows_, segments = segments_, stages = stages_, outer = 128, depth = 64;
  static constexpr bool transposed = transposed_, with_factors = with_factors_;
  static constexpr int columns = rows * segments;

  // The weight lies as in memory. Rows of x have 128 bytes. In both, parts of 16 bytes are exchanged (`exchanged`).
  static constexpr int weight_rows = transposed ? depth : outer, weight_columns = transposed ? outer : depth;
  static constexpr int word_columns = weight_columns / 32, words = weight_rows * word_columns;
  static constexpr int weight_bytes = outer * depth * 2, x_bytes = columns * depth * 2, words_bytes = segments * words * 4;
  static constexpr int stage_bytes = weight_bytes + x_bytes + words_bytes;
  static constexpr int x_copies = columns * 8 / wide_threads;
  static constexpr int runs_bytes = 1024;
  static constexpr int shared_bytes = 1024 + runs_bytes + stages * stage_bytes;  // the first for the alignment
  static_assert(stage_bytes % 1024 == 0 && shared_bytes <= 227 * 1024 && stages >= 3);
};

struct Run {  // of rows of x under one mask
  int group;
  int first_row;
  int rows;
};

// Where part `part` of 16 bytes of a row lies, as the hardware finds it in rows of 128 bytes.
__device__ __forceinline__ int exchanged(int row, int part) { return part ^ (row % 8); }

struct WideMasks {
  const std::uint32_t* words;  // [groups, n, row_words]
  const float* factors;        // [groups] or null
  const Run* runs;             // [blocks, segments], or null: `groups` of `rows` rows each
  int groups;
  int rows;
  int row_tiles;
  int row_words;  // even
  int n;
  int blocks;  // of rows
};

// A tile's place: blocks of rows run fastest but for eight tiles of the weight, so that what is read again is in L2.
struct WidePlace {
  int block;
  int outer;

  __device__ __forceinline__ WidePlace(int outer_tiles, int blocks, int tile_outer) {
    constexpr int together = 8;
    const int program = static_cast<int>(blockIdx.x), per_lot = together * blocks, first = program / per_lot * together;
    const int size = min(outer_tiles - first, together), inside = program % per_lot;
    block = inside / size;
    outer = (first + inside % size) * tile_outer;
  }
};

// Where the rows of x of a tile are: thread i copies part i % 8 of rows i / 8, i / 8 + 32 and so on.
template <class Tile>
class RowsOfLinear {
 public:
  struct Parameters {};

  __device__ __forceinline__ RowsOfLinear(const Linear& task, const Parameters&) : task_(task) {}

  // The place in x of row i of this thread, or that there is none.
  __device__ __forceinline__ void set(int i, int row) { rows_[i] = row; }
  __device__ __forceinline__ void set_none(int i) { rows_[i] = -1; }

  __device__ __forceinline__ void go_to(int inner) { column_ = inner + static_cast<int>(threadIdx.x) % 8 * 8; }
  __device__ __forceinline__ bool inside(int i) const { return rows_[i] >= 0 && column_ < task_.inner; }
  __device__ __forceinline__ std::int64_t offset(int i) const { return std::int64_t{rows_[i]} * task_.inner + column_; }

 private:
  const Linear& task_;
  int rows_[Tile::x_copies];
  int column_;
};

// Images [images, height, width, channels] of a convolution whose weight is [filters, kernel rows, kernel columns,
// channels]: rows are its positions, and a lot of the sum is of one element of the kernel.
struct Window {
  int height;
  int width;
  int out_height;
  int out_width;
  int channels;  // a multiple of 64
  int kernel_width;
  int stride[2];
  int padding[2];
  int dilation[2];
};

template <class Tile>
class RowsOfConvolution {
 public:
  using Parameters = Window;

  __device__ __forceinline__ RowsOfConvolution(const Linear&, const Window& window) : window_(window) {}

  __device__ __forceinline__ void set(int i, int row) {
    const int area = window_.out_height * window_.out_width, position = row % area;
    images_[i] = row / area * window_.height * window_.width;
    corners_[i] = {static_cast<short>(position / window_.out_width * window_.stride[0] - window_.padding[0]),
                   static_cast<short>(position % window_.out_width * window_.stride[1] - window_.padding[1])};
  }
  __device__ __forceinline__ void set_none(int i) { images_[i] = -1; }

  __device__ __forceinline__ void go_to(int inner) {
    const int element = inner / window_.channels;
    channel_ = inner - element * window_.channels + static_cast<int>(threadIdx.x) % 8 * 8;
    down_ = element / window_.kernel_width * window_.dilation[0];
    right_ = element % window_.kernel_width * window_.dilation[1];
  }
  __device__ __forceinline__ bool inside(int i) const {
    const unsigned y = corners_[i].y + down_, x = corners_[i].x + right_;  // those before the first are large
    return images_[i] >= 0 && y < static_cast<unsigned>(window_.height) && x < static_cast<unsigned>(window_.width);
  }
  __device__ __forceinline__ std::int64_t offset(int i) const {
    const int pixel = images_[i] + (corners_[i].y + down_) * window_.width + corners_[i].x + right_;
    return std::int64_t{pixel} * window_.channels + channel_;
  }

 private:
  struct Corner {
    short y;
    short x;
  };
  const Window& window_;
  int images_[Tile::x_copies];
  Corner corners_[Tile::x_copies];
  int channel_;
  int down_;
  int right_;
};

template <class Tile, class Rows>
class WideProduct {
 public:
  using T = typename Tile::Type;

  __device__ __forceinline__ WideProduct(const Linear& task, const WideMasks& masks,
                                         const typename Rows::Parameters& parameters)
      : task_(task),
        masks_(masks),
        place_((task.outer + Tile::outer - 1) / Tile::outer, masks.blocks, Tile::outer),
        runs_(reinterpret_cast<Run*>(memory())),
        rows_(task, parameters) {
    if (threadIdx.x < Tile::segments) runs_[threadIdx.x] = find_run(threadIdx.x);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Tile::x_copies; ++i) {
      const int row = static_cast<int>(threadIdx.x) / 8 + wide_threads / 8 * i;
      const Run run = runs_[row / Tile::rows];
      const int own = row % Tile::rows;
      if (own < run.rows) {
        rows_.set(i, run.first_row + own);
      } else {
        rows_.set_none(i);
      }
    }
  }

  __device__ __forceinline__ void run() {
    const int lots = (task_.inner + Tile::depth - 1) / Tile::depth;
    for (int lot = 0; lot < Tile::stages - 2; ++lot) begin(lot);
#pragma unroll
    for (int segment = 0; segment < Tile::segments; ++segment) settle(sums_[segment]);
    for (int lot = 0; lot < lots; ++lot) multiply_lot(lot);
    wait_products<0>();
    wait_copies<0>();
    __syncthreads();
    write();
  }

 private:
  static constexpr int weight_copies = Tile::outer * 8 / wide_threads;
  // Registers of ablated weights are filled anew while products still read others: each step of 16 elements has its own;
  // small products go in pairs.
  static constexpr int steps_together = Tile::segments == 1 ? 1 : 2, sides = 4 / steps_together;
  static constexpr int under_way = sides - 1;

  __device__ __forceinline__ static unsigned char* memory() {
    unsigned char* all = shared_memory();
    return all + (1024 - shared_address(all) % 1024) % 1024;
  }
  __device__ __forceinline__ static unsigned char* stage(int lot) {
    return memory() + Tile::runs_bytes + lot % Tile::stages * Tile::stage_bytes;
  }

  __device__ __forceinline__ Run find_run(int segment) const {
    if (masks_.runs != nullptr) return masks_.runs[std::int64_t{place_.block} * Tile::segments + segment];
    const int group = place_.block / masks_.row_tiles * Tile::segments + segment;
    const int row = place_.block % masks_.row_tiles * Tile::rows;
    if (group >= masks_.groups) return {0, 0, 0};
    return {group, group * masks_.rows + row, min(Tile::rows, masks_.rows - row)};
  }

  // Begins the copies of a lot of the sum, and closes them. Behind the last lot they are zeros: without a branch here,
  // products may be under way on both sides.
  __device__ __forceinline__ void begin(int lot) {
    unsigned char* to = stage(lot);
    copy_weight(to, lot * Tile::depth);
    copy_x(to + Tile::weight_bytes, lot * Tile::depth);
    copy_words(reinterpret_cast<std::uint32_t*>(to + Tile::weight_bytes + Tile::x_bytes), lot * Tile::depth);
    close_copies();
  }

  __device__ __forceinline__ void copy_weight(unsigned char* to, int inner) const {
    constexpr int parts = Tile::weight_columns / 8;
    const T* weight = static_cast<const T*>(task_.weight);
    const int rows = Tile::transposed ? task_.inner : task_.outer, columns = Tile::transposed ? task_.outer : task_.inner;
    const int part = static_cast<int>(threadIdx.x) % parts;
    const int column = (Tile::transposed ? place_.outer : inner) + part * 8;
    const int first_row = Tile::transposed ? inner : place_.outer;
#pragma unroll
    for (int i = 0; i < weight_copies; ++i) {
      const int own = static_cast<int>(threadIdx.x) / parts + wide_threads / parts * i, row = first_row + own;
      const bool inside = row < rows && column < columns;
      const T* from = weight + (inside ? std::int64_t{row} * columns + column : 0);
      copy_async<16>(to + own * (2 * Tile::weight_columns) + exchanged(own, part) * 16, from, inside);
    }
  }

  __device__ __forceinline__ void copy_x(unsigned char* to, int inner) {
    const T* x = static_cast<const T*>(task_.x);
    const int part = static_cast<int>(threadIdx.x) % 8;
    rows_.go_to(inner);
#pragma unroll
    for (int i = 0; i < Tile::x_copies; ++i) {
      const int own = static_cast<int>(threadIdx.x) / 8 + wide_threads / 8 * i;
      const bool inside = rows_.inside(i);
      copy_async<16>(to + own * 128 + exchanged(own, part) * 16, x + (inside ? rows_.offset(i) : 0), inside);
    }
  }

  // The words [segments, weight_rows, word_columns] of a lot; zeros where there are none. A row has an even number.
  __device__ __forceinline__ void copy_words(std::uint32_t* to, int inner) const {
    constexpr int together = Tile::segments == 1 ? 1 : 2, steps = Tile::word_columns / together;
    const int first_row = Tile::transposed ? inner : place_.outer, first_word = (Tile::transposed ? place_.outer : inner) / 32;
#pragma unroll
    for (int copy = 0; copy < Tile::segments / together; ++copy) {
      const int i = static_cast<int>(threadIdx.x) + wide_threads * copy;
      const int segment = i / steps / Tile::weight_rows, row = first_row + i / steps % Tile::weight_rows;
      const int word = first_word + i % steps * together;
      const Run run = runs_[segment];
      const bool inside = run.rows > 0 && row < masks_.n && word < masks_.row_words;
      const std::int64_t place = (std::int64_t{run.group} * masks_.n + row) * masks_.row_words + word;
      copy_async<4 * together>(to + i * together, masks_.words + (inside ? place : 0), inside);
    }
  }

  // Ablates and multiplies a lot of the sum, while products of the one before it are under way.
  __device__ __forceinline__ void multiply_lot(int lot) {
    wait_copies<Tile::stages - 3>();
    show_to_products();
    wait_products<under_way>();
    __syncthreads();  // this lot has arrived, and no thread's products read the stage that is filled below
    const unsigned char* weight = stage(lot);
    const unsigned char* x = weight + Tile::weight_bytes;
    const auto* words = reinterpret_cast<const std::uint32_t*>(x + Tile::x_bytes);
    std::uint32_t plain[4][4];
    load_weights(plain, weight);
#pragma unroll
    for (int segment = 0; segment < Tile::segments; ++segment) {
      const unsigned char* rows = x + segment * Tile::rows * 128;
#pragma unroll
      for (int first = 0; first < 4; first += steps_together) {
        std::uint32_t(&ablated)[steps_together][4] = ablated_[first / steps_together];
        const Gone gone = find_gone(words + segment * Tile::words, segment, lot * Tile::depth, first);
        if (segment + first > 0) wait_products<under_way>();  // among others those that read these registers
#pragma unroll
        for (int step = 0; step < steps_together; ++step) {
          ablate(ablated[step], plain[first + step], gone, first, step);
          settle(ablated[step]);
        }
        open_products();
#pragma unroll
        for (int step = 0; step < steps_together; ++step) {
          begin_product<Tile::rows>(T{}, sums_[segment], ablated[step], rows + (first + step) * 32);
        }
        close_products();
        if (segment + first == 0) begin(lot + Tile::stages - 2);  // only now: the tensor cores have work again
      }
    }
  }

  // The warp's 16 outputs and 64 elements, as operand a of four products.
  __device__ __forceinline__ void load_weights(std::uint32_t (&to)[4][4], const unsigned char* weight) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      if constexpr (Tile::transposed) {
        const int row = 16 * step + lane % 8 + lane / 16 * 8, part = 2 * warp + lane / 8 % 2;
        load_matrices<true>(to[step], weight + row * 256 + exchanged(row, part) * 16);
      } else {
        const int row = 16 * warp + lane % 16, part = 2 * step + lane / 16;
        load_matrices<false>(to[step], weight + row * 128 + exchanged(row, part) * 16);
      }
    }
  }

  // The words of some steps of a lot, shifted so that the sign of a byte tells of the element in question.
  struct Gone {
    std::uint32_t even[Tile::transposed ? 2 * steps_together : 2];
    std::uint32_t odd[Tile::transposed ? 2 * steps_together : 2];
    std::uint32_t factor;  // twice, in its type; 0 if elements are to become 0 whatever they are
  };

  __device__ __forceinline__ Gone find_gone(const std::uint32_t* words, int segment, int inner, int first_step) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    Gone gone;
    gone.factor = 0;
    if constexpr (Tile::with_factors) {
      const std::uint32_t bits = from_float<T>(masks_.factors[runs_[segment].group]).bits;
      if ((bits & 0x7fffu) != 0) gone.factor = bits * 0x10001u;
    }
    if constexpr (Tile::transposed) {
#pragma unroll
      for (int i = 0; i < 2 * steps_together; ++i) {  // elements 8 * i + 2t of the steps and the next
        const std::uint32_t* own = words + (16 * first_step + 8 * i + 2 * t) * Tile::word_columns + warp / 2;
        gone.even[i] = own[0] << (7 - g);
        gone.odd[i] = own[Tile::word_columns] << (7 - g);
      }
    } else {
      const int column = first_step / 2;  // of 32 elements
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // outputs g and g + 8
        std::uint32_t word = words[(16 * warp + 8 * i + g) * Tile::word_columns + column];
        if constexpr (Tile::with_factors) word &= existing(inner + 32 * column);
        gone.even[i] = word << (7 - 2 * t);
        gone.odd[i] = word << (6 - 2 * t);
      }
    }
    return gone;
  }

  // Register i: outputs g + 8 * (i % 2) of the warp, elements 16 * (first_step + step) + 8 * (i / 2) + 2t and the next.
  __device__ __forceinline__ static void ablate(std::uint32_t (&to)[4], const std::uint32_t (&plain)[4],
                                                const Gone& gone, int first_step, int step) {
    const int warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int word = Tile::transposed ? 2 * step + i / 2 : i % 2;
      const int byte = Tile::transposed ? warp % 2 * 2 + i % 2 : (first_step + step) % 2 * 2 + i / 2;
      to[i] = without(plain[i], permute(gone.even[word], gone.odd[word], 0xcc88u + 0x1111u * byte), gone.factor);
    }
  }

  __device__ __forceinline__ static std::uint32_t without(std::uint32_t weights, std::uint32_t gone, std::uint32_t factor) {
    if constexpr (Tile::with_factors) {
      const std::uint32_t instead = factor == 0 ? 0 : multiply_pairs(T{}, weights, factor);
      return (weights & ~gone) | (instead & gone);
    }
    return weights & ~gone;
  }

  // The bits of a word that stand for elements: those behind the last must not turn a zero times infinity into a sum.
  __device__ __forceinline__ std::uint32_t existing(int first_element) const {
    const int left = task_.inner - first_element;
    return left >= 32 ? ~0u : (1u << max(left, 0)) - 1;
  }

  // Adds the bias, turns the sums by way of shared memory, and writes rows of y.
  __device__ __forceinline__ void write() {
    constexpr int stride = Tile::outer + 8;
    static_assert(Tile::columns * stride * 2 <= Tile::stages * Tile::stage_bytes && Tile::rows % 16 == 0);
    T* turned = reinterpret_cast<T*>(stage(0));
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, outer = place_.outer;
    const T* bias = static_cast<const T*>(task_.bias);
    float added[2] = {};
    for (int half = 0; half < 2; ++half) {
      const int output = outer + 16 * warp + 8 * half + lane / 4;
      if (bias != nullptr && output < task_.outer) added[half] = to_float(bias[output]);
    }
#pragma unroll
    for (int segment = 0; segment < Tile::segments; ++segment) {
#pragma unroll
      for (int eight = 0; eight < Tile::rows / 8; eight += 2) {
        std::uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* own = sums_[segment] + 4 * (eight + i / 2) + 2 * (i % 2);
          pairs[i] = pair(own[0] + added[i % 2], own[1] + added[i % 2]);
        }
        const int row = segment * Tile::rows + 8 * (eight + lane / 16) + lane % 8;
        store_matrices_transposed(turned + row * stride + 16 * warp + lane / 8 % 2 * 8, pairs);
      }
    }
    __syncthreads();
    constexpr int parts = Tile::outer / 8;
    for (int i = threadIdx.x; i < Tile::columns * parts; i += wide_threads) {
      const int row = i / parts, column = outer + i % parts * 8;
      const Run run = runs_[row / Tile::rows];
      if (row % Tile::rows >= run.rows || column >= task_.outer) continue;
      T* y = static_cast<T*>(task_.y) + (std::int64_t{run.first_row} + row % Tile::rows) * task_.outer + column;
      const T* from = turned + row * stride + i % parts * 8;
      if (task_.y_vectors) {
        *reinterpret_cast<uint4*>(y) = *reinterpret_cast<const uint4*>(from);
      } else {
        for (int e = 0; e < 8 && column + e < task_.outer; ++e) y[e] = from[e];
      }
    }
  }

  __device__ __forceinline__ static std::uint32_t pair(float low, float high) {
    return from_float<T>(low).bits | std::uint32_t{from_float<T>(high).bits} << 16;
  }

  const Linear& task_;
  const WideMasks& masks_;
  WidePlace place_;
  Run* runs_;
  Rows rows_;
  std::uint32_t ablated_[sides][steps_together][4];
  float sums_[Tile::segments][Tile::rows / 2] = {};
};

template <class Tile>
__global__ void __launch_bounds__(wide_threads, 1) wgmma_linear(const Linear task, const WideMasks masks) {
  WideProduct<Tile, RowsOfLinear<Tile>> product(task, masks, {});
  product.run();
}

template <class Tile>
__global__ void __launch_bounds__(wide_threads, 1)
    wgmma_conv2d(const Linear task, const WideMasks masks, const Window window) {
  WideProduct<Tile, RowsOfConvolution<Tile>> product(task, masks, window);
  product.run();
}

}  // namespace cad_fast::cuda
