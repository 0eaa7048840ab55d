// 16-bit weights on Hopper: as mma_linear.cuh, by the instructions of a warpgroup, which work on their own while the
// threads ablate the next weights, and by copies of tiles, which one thread begins for all.
#pragma once

#include "ablations.cuh"
#include "wgmma.cuh"

namespace cad_fast::cuda {

constexpr int product_threads = 256;  // two warpgroups, each with half of the outputs
constexpr int wide_threads = product_threads + 128;  // and one of which a thread begins copies
constexpr int product_warps = product_threads / 32;

// Sizes of a tile: `segments` runs of up to `rows` rows of x, each under its own mask, by 128 outputs of the weight.
// `blocks` are together on a multiprocessor.
template <class T, int rows_, int segments_, int stages_, int blocks_, bool transposed_, bool with_factors_>
struct WideTile {
  using Type = T;
  static constexpr int rows = rows_, segments = segments_, stages = stages_, blocks = blocks_, outer = 128, depth = 64;
  static constexpr bool transposed = transposed_, with_factors = with_factors_;
  static constexpr int columns = rows * segments;

  // The weight lies as in memory, transposed in two halves. Its rows and those of x have 128 bytes, whose parts of 16
  // bytes are exchanged (`exchanged`).
  static constexpr int weight_bytes = outer * depth * 2, x_bytes = columns * depth * 2;
  static constexpr int stage_bytes = weight_bytes + x_bytes;

  // Each warp copies the words of its 16 outputs and 64 elements, some lots ahead.
  static constexpr int word_lots = 3, words = transposed ? depth : 32;  // of a warp and segment
  static constexpr int words_bytes = word_lots * product_warps * segments * words * 4;
  static constexpr int head_bytes = 1024;  // runs and barriers
  static constexpr int shared_bytes = 1024 + head_bytes + stages * stage_bytes + words_bytes;  // the first to align
  static_assert(blocks <= 2 && segments * 12 <= 512 && stages * 16 <= 512);
  static_assert(stage_bytes % 1024 == 0 && blocks * (shared_bytes + 1024) <= 228 * 1024);
};

struct Run {  // of rows of x under one mask
  int group;
  int first_row;
  int rows;
};

// Where part `part` of 16 bytes of a row lies, as the hardware has it in rows of 128 bytes.
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

struct WideMaps {
  TileMap x;
  TileMap weight;
};

// A tile's place: blocks of rows run fastest but for eight tiles of the weight, so that what is read again is in L2.
struct WidePlace {
  int block;
  int outer_tile;

  __device__ __forceinline__ WidePlace(int outer_tiles, int blocks) {
    constexpr int together = 8;
    const int program = static_cast<int>(blockIdx.x), per_lot = together * blocks, first = program / per_lot * together;
    const int size = min(outer_tiles - first, together), inside = program % per_lot;
    block = inside / size;
    outer_tile = first + inside % size;
  }
};

// Copies of rows of x.
class RowsOfLinear {
 public:
  __device__ __forceinline__ explicit RowsOfLinear(const Window&) {}

  __device__ __forceinline__ void copy(void* to, const TileMap& x, int first_row, int inner, Barrier* barrier) const {
    copy_tile(to, x, inner, first_row, barrier);
  }
};

// Copies of what the positions of a convolution meet: rows are its positions, a lot of the sum is of one element of the
// kernel, as channels are a multiple of 64.
class RowsOfConvolution {
 public:
  __device__ __forceinline__ explicit RowsOfConvolution(const Window& window) : window_(window) {}

  __device__ __forceinline__ void copy(void* to, const TileMap& x, int first_row, int inner, Barrier* barrier) const {
    const int area = window_.out_height * window_.out_width, position = first_row % area;
    const int element = inner / window_.channels;
    copy_positions(to, x, inner % window_.channels,
                   position % window_.out_width * window_.stride[1] - window_.padding[1],
                   position / window_.out_width * window_.stride[0] - window_.padding[0], first_row / area,
                   element % window_.kernel[1] * window_.dilation[1], element / window_.kernel[1] * window_.dilation[0],
                   barrier);
  }

 private:
  const Window& window_;
};

template <class Tile, class Rows>
class WideProduct {
 public:
  using T = typename Tile::Type;

  __device__ __forceinline__ WideProduct(const Linear& task, const WideMasks& masks, const WideMaps& maps,
                                         const Window& window)
      : task_(task),
        masks_(masks),
        maps_(maps),
        place_((task.outer + Tile::outer - 1) / Tile::outer, masks.blocks),
        outer_(place_.outer_tile * Tile::outer),
        lots_((task.inner + Tile::depth - 1) / Tile::depth),
        rows_(window) {
    if (threadIdx.x < Tile::segments) runs()[threadIdx.x] = find_run(threadIdx.x);
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < Tile::stages; ++stage) {
        make_barrier(full(stage), 1);
        make_barrier(empty(stage), product_warps);
      }
      show_barriers();
    }
    __syncthreads();
  }

  // For the threads behind those that multiply: begins the copies of all lots, each as soon as there is room.
  __device__ __forceinline__ void copy() const {
    if (threadIdx.x != product_threads) return;
    int bytes = Tile::weight_bytes;
    for (int segment = 0; segment < Tile::segments; ++segment) {
      if (runs()[segment].rows > 0) bytes += Tile::rows * 128;
    }
    for (int lot = 0; lot < lots_; ++lot) {
      const int stage = lot % Tile::stages, inner = lot * Tile::depth;
      wait(empty(stage), (lot / Tile::stages + 1) % 2);  // of the lot that was there before
      Barrier* arrived = full(stage);
      arrive_and_expect(arrived, bytes);
      unsigned char* to = memory_of(stage);
      if constexpr (Tile::transposed) {
        copy_tile(to, maps_.weight, outer_, inner, arrived);
        copy_tile(to + Tile::weight_bytes / 2, maps_.weight, outer_ + 64, inner, arrived);
      } else {
        copy_tile(to, maps_.weight, inner, outer_, arrived);
      }
      for (int segment = 0; segment < Tile::segments; ++segment) {
        const Run run = runs()[segment];
        unsigned char* rows = to + Tile::weight_bytes + segment * Tile::rows * 128;
        if (run.rows > 0) rows_.copy(rows, maps_.x, run.first_row, inner, arrived);
      }
    }
  }

  __device__ __forceinline__ void multiply() {
    for (int lot = 0; lot < Tile::word_lots - 1; ++lot) begin_words(lot);
#pragma unroll
    for (int segment = 0; segment < Tile::segments; ++segment) settle(sums_[segment]);
    for (int lot = 0; lot < lots_; ++lot) multiply_lot(lot);
    wait_products<0>();
    wait_copies<0>();
    barrier_of_first<product_threads>();
    write();
  }

 private:
  // Registers of ablated weights are filled anew while products still read others. To begin products takes a warpgroup
  // some hundred cycles, so that several are begun together: all of a segment, or half of them where there is but one or
  // registers are few.
  static constexpr int sides = 2, steps_together = Tile::segments == 1 || Tile::blocks == 2 ? 2 : 4;

  __device__ __forceinline__ static unsigned char* memory() {
    unsigned char* all = shared_memory();
    return all + (1024 - shared_address(all) % 1024) % 1024;
  }
  __device__ __forceinline__ static Run* runs() { return reinterpret_cast<Run*>(memory()); }
  __device__ __forceinline__ static Barrier* full(int stage) {
    return reinterpret_cast<Barrier*>(memory() + 512) + stage;
  }
  __device__ __forceinline__ static Barrier* empty(int stage) { return full(Tile::stages + stage); }
  __device__ __forceinline__ static unsigned char* memory_of(int stage) {
    return memory() + Tile::head_bytes + stage * Tile::stage_bytes;
  }
  // The words [segments, words] of this warp.
  __device__ __forceinline__ static std::uint32_t* words_of(int lot) {
    auto* words = reinterpret_cast<std::uint32_t*>(memory_of(Tile::stages));
    const int warp = threadIdx.x / 32;
    return words + (lot % Tile::word_lots * product_warps + warp) * Tile::segments * Tile::words;
  }

  __device__ __forceinline__ Run find_run(int segment) const {
    if (masks_.runs != nullptr) return masks_.runs[std::int64_t{place_.block} * Tile::segments + segment];
    const int group = place_.block / masks_.row_tiles * Tile::segments + segment;
    const int row = place_.block % masks_.row_tiles * Tile::rows;
    if (group >= masks_.groups) return {0, 0, 0};
    return {group, group * masks_.rows + row, min(Tile::rows, masks_.rows - row)};
  }

  // Begins to copy this warp's words of a lot, and closes the copies; zeros where there are none. Plain, they are [16
  // outputs, 2], transposed [64 elements], each with the bits of 32 outputs. There is no branch here, so that products may
  // be under way on both sides.
  __device__ __forceinline__ void begin_words(int lot) const {
    constexpr int together = Tile::transposed || Tile::segments == 1 ? 1 : 2;
    constexpr int per_segment = Tile::words / together, copies = Tile::segments * per_segment / 32;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, inner = lot * Tile::depth;
    std::uint32_t* to = words_of(lot);
#pragma unroll
    for (int copy = 0; copy < copies; ++copy) {
      const int i = lane + 32 * copy, segment = i / per_segment, own = i % per_segment;
      int row, word;
      if constexpr (Tile::transposed) {
        row = inner + own;
        word = (outer_ + 16 * warp) / 32;
      } else {
        row = outer_ + 16 * warp + own * together / 2;
        word = inner / 32 + own * together % 2;
      }
      const Run run = runs()[segment];
      const bool inside = run.rows > 0 && row < masks_.n && word < masks_.row_words;
      const std::int64_t place = (std::int64_t{run.group} * masks_.n + row) * masks_.row_words + word;
      copy_async<4 * together>(to + i * together, masks_.words + (inside ? place : 0), inside);
    }
    close_copies();
  }

  // Ablates and multiplies a lot of the sum, while products of the one before it are under way.
  __device__ __forceinline__ void multiply_lot(int lot) {
    const unsigned char* weight = memory_of(lot % Tile::stages);
    const unsigned char* x = weight + Tile::weight_bytes;
    const std::uint32_t* words = words_of(lot);
    wait(full(lot % Tile::stages), lot / Tile::stages % 2);
    wait_copies<Tile::word_lots - 2>();
    __syncwarp();  // the words of this lot are there, and no lane reads those of the lot before any more
    std::uint32_t plain[4][4];
    load_weights(plain, weight);
#pragma unroll
    for (int segment = 0; segment < Tile::segments; ++segment) {
      const unsigned char* rows = x + segment * Tile::rows * 128;
      const Words found = load_words(words + segment * Tile::words, segment, lot * Tile::depth);
#pragma unroll
      for (int first = 0; first < 4; first += steps_together) {
        const int group = segment * (4 / steps_together) + first / steps_together;
        std::uint32_t(&ablated)[steps_together][4] = ablated_[group % sides];
        wait_products<sides - 1>();  // among others those that read these registers
        if (group == 1) {            // all of the lot before have been waited for
          arrive(empty((lot + Tile::stages - 1) % Tile::stages), lot > 0 && threadIdx.x % 32 == 0);
        }
#pragma unroll
        for (int step = 0; step < steps_together; ++step) {
          ablate(ablated[step], plain[first + step], found, first + step);
          settle(ablated[step]);
        }
        open_products();
#pragma unroll
        for (int step = 0; step < steps_together; ++step) {
          begin_product<Tile::rows>(T{}, sums_[segment], ablated[step], rows + (first + step) * 32);
        }
        close_products();
        if (group == 0) begin_words(lot + Tile::word_lots - 1);  // only now: the tensor cores have work again
      }
    }
  }

  // The warp's 16 outputs and 64 elements, as operand a of four products.
  __device__ __forceinline__ void load_weights(std::uint32_t (&to)[4][4], const unsigned char* weight) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      if constexpr (Tile::transposed) {
        const int row = 16 * step + lane % 8 + lane / 16 * 8, part = 2 * (warp % 4) + lane / 8 % 2;
        const unsigned char* half = weight + warp / 4 * (Tile::weight_bytes / 2);
        load_matrices<true>(to[step], half + row * 128 + exchanged(row, part) * 16);
      } else {
        const int row = 16 * warp + lane % 16, part = 2 * step + lane / 16;
        load_matrices<false>(to[step], weight + row * 128 + exchanged(row, part) * 16);
      }
    }
  }

  // The words of a lot and segment: plain, of outputs g and g + 8, for each those of two times 32 elements; transposed, of
  // elements 2t, 2t + 8 and so on, for each that of the next element too.
  struct Words {
    std::uint32_t of[Tile::transposed ? 8 : 2][2];
    std::uint32_t factor;  // twice, in its type; 0 if elements are to become 0 whatever they are
  };

  __device__ __forceinline__ Words load_words(const std::uint32_t* words, int segment, int inner) const {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    Words found;
    found.factor = 0;
    if constexpr (Tile::with_factors) {
      const std::uint32_t bits = from_float<T>(masks_.factors[runs()[segment].group]).bits;
      if ((bits & 0x7fffu) != 0) found.factor = bits * 0x10001u;
    }
#pragma unroll
    for (int i = 0; i < (Tile::transposed ? 8 : 2); ++i) {
      const std::uint32_t* own = words + (Tile::transposed ? 8 * i + 2 * t : (8 * i + g) * 2);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        found.of[i][j] = own[j];
        if constexpr (Tile::with_factors && !Tile::transposed) found.of[i][j] &= existing(inner + 32 * j);
      }
    }
    return found;
  }

  // Register i: outputs g + 8 * (i % 2) of the warp, elements 16 * step + 8 * (i / 2) + 2t and the next. The words are
  // shifted so that the sign of a byte tells of the element in question.
  __device__ __forceinline__ static void ablate(std::uint32_t (&to)[4], const std::uint32_t (&plain)[4],
                                                const Words& found, int step) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
    std::uint32_t even[2], odd[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      even[i] = Tile::transposed ? found.of[2 * step + i][0] << (7 - g) : found.of[i][step / 2] << (7 - 2 * t);
      odd[i] = Tile::transposed ? found.of[2 * step + i][1] << (7 - g) : found.of[i][step / 2] << (6 - 2 * t);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int word = Tile::transposed ? i / 2 : i % 2;
      const int byte = Tile::transposed ? warp % 2 * 2 + i % 2 : step % 2 * 2 + i / 2;
      to[i] = without(plain[i], permute(even[word], odd[word], 0xcc88u + 0x1111u * byte), found.factor);
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
    T* turned = reinterpret_cast<T*>(memory_of(0));
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, outer = outer_;
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
    barrier_of_first<product_threads>();
    constexpr int parts = Tile::outer / 8;
    for (int i = threadIdx.x; i < Tile::columns * parts; i += product_threads) {
      const int row = i / parts, column = outer + i % parts * 8;
      const Run run = runs()[row / Tile::rows];
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
  const WideMaps& maps_;
  WidePlace place_;
  int outer_;
  int lots_;
  Rows rows_;
  std::uint32_t ablated_[sides][steps_together][4];
  float sums_[Tile::segments][Tile::rows / 2] = {};
};

template <class Tile, class Rows>
__global__ void __launch_bounds__(wide_threads, Tile::blocks)
    wgmma_product(const Linear task, const WideMasks masks, const __grid_constant__ WideMaps maps, const Window window) {
  WideProduct<Tile, Rows> product(task, masks, maps, window);
  // Those that multiply take over registers of those that do not.
  if (threadIdx.x < product_threads) {
    take_registers<Tile::blocks == 1 ? 232 : 104>();
    product.multiply();
  } else {
    leave_registers<Tile::blocks == 1 ? 40 : 32>();
    product.copy();
  }
}

}  // namespace cad_fast::cuda
