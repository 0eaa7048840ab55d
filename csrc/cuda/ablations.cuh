// How the weights in a tile become those of a row: by packed masks, or by lists of edits.
#pragma once

#include "linear.cuh"

namespace cad_fast::cuda {

struct Masks {
  const std::uint32_t* words;  // [variants, n, row_words]
  const float* factors;        // [variants] or null
  int variants;
  int rows;  // of each variant
  int row_tiles;
  int row_words;
  int n;
};

// What the masked kernels share. Block (i, j) takes segments of consecutive variants, so that they share the tile of the
// weight, and neighbouring blocks take the same outputs, so that they find it in the L2 cache.
template <class Tile>
class MaskedBlock {
 public:
  static constexpr int words_per_stage = Tile::segments * Tile::words;

  __device__ __forceinline__ MaskedBlock(const Linear& task, const Masks& masks)
      : task_(task),
        masks_(masks),
        variant_(static_cast<int>(blockIdx.x) / masks.row_tiles * Tile::segments),
        row_(static_cast<int>(blockIdx.x) % masks.row_tiles * Tile::rows) {}

  __device__ __forceinline__ std::int64_t first_row(int segment) const {
    return std::int64_t{variant_ + segment} * masks_.rows + row_;
  }
  __device__ __forceinline__ int rows(int segment) const {
    return variant_ + segment < masks_.variants ? min(Tile::rows, masks_.rows - row_) : 0;
  }

  __device__ __forceinline__ typename Tile::Type factor(int segment) const {
    const bool given = masks_.factors != nullptr && variant_ + segment < masks_.variants;
    return from_float<typename Tile::Type>(given ? masks_.factors[variant_ + segment] : 0.0f);
  }

  // The words [segments, weight_rows, word_columns] of a tile; zeros where there are none.
  __device__ __forceinline__ void copy(std::uint32_t* to, int outer, int inner) const {
    const int first_row = Tile::transposed ? inner : outer, first_word = (Tile::transposed ? outer : inner) / 32;
    for (int i = threadIdx.x; i < words_per_stage; i += block_threads) {
      const int segment = i / Tile::words, row = first_row + i % Tile::words / Tile::word_columns;
      const int word = first_word + i % Tile::word_columns;
      const bool inside = rows(segment) > 0 && row < masks_.n && word < masks_.row_words;
      const std::int64_t place = (std::int64_t{variant_ + segment} * masks_.n + row) * masks_.row_words + word;
      copy_async<4>(to + i, masks_.words + (inside ? place : 0), inside);
    }
  }

 protected:
  // The bits of a word that stand for elements: those behind the last must not turn a zero times infinity into a sum.
  __device__ __forceinline__ std::uint32_t existing(int first_element) const {
    const int left = (Tile::transposed ? task_.outer : task_.inner) - first_element;
    return left >= 32 ? ~0u : (1u << max(left, 0)) - 1;
  }

  const Linear& task_;
  const Masks& masks_;
  int variant_;
  int row_;
};

// Changes the tile in shared memory: for kernels with one segment whose threads share elements of the weight.
template <class Tile>
class MaskedTile : public MaskedBlock<Tile> {
 public:
  __device__ __forceinline__ MaskedTile(const Linear& task, const Masks& masks)
      : MaskedBlock<Tile>(task, masks), factor_(this->factor(0)) {
    static_assert(Tile::segments == 1);
  }

  __device__ __forceinline__ bool patch(float* weight, const std::uint32_t* words, int outer, int inner) const {
    for (int i = threadIdx.x; i < Tile::words; i += block_threads) {
      const int row = i / Tile::word_columns, column = i % Tile::word_columns;
      const std::uint32_t word = words[i] & this->existing((Tile::transposed ? outer : inner) + 32 * column);
      if (word == 0) continue;
      float4* elements = reinterpret_cast<float4*>(weight + row * Tile::weight_stride + 32 * column);
      for (int e = 0; e < 8; ++e) {
        const int turned = (e + 2 * column) % 8;  // threads of one row would meet in the same banks
        elements[turned] = ablated(elements[turned], word >> (4 * turned));
      }
    }
    return true;
  }

 private:
  __device__ __forceinline__ float ablated(float weight, std::uint32_t bit) const {
    if ((bit & 1u) == 0) return weight;
    return factor_ == 0.0f ? 0.0f : weight * factor_;
  }
  __device__ __forceinline__ float4 ablated(float4 weights, std::uint32_t bits) const {
    return {ablated(weights.x, bits), ablated(weights.y, bits >> 1), ablated(weights.z, bits >> 2),
            ablated(weights.w, bits >> 3)};
  }

  float factor_;
};

// Changes 16-bit weights in registers, in the layout of operand a of mma.m16n8k16, for each segment anew.
template <class Tile>
class MaskedRegisters : public MaskedBlock<Tile> {
 public:
  using T = typename Tile::Type;
  static constexpr int outer_tiles = Tile::outer / 64;  // of 16 outputs, per warp

  // The words of 32 elements of the sum, shifted so that the sign of byte j tells of the element in question.
  struct Bits {
    std::uint32_t even[Tile::transposed ? 4 : 2 * outer_tiles];
    std::uint32_t odd[Tile::transposed ? 4 : 2 * outer_tiles];
  };

  __device__ __forceinline__ MaskedRegisters(const Linear& task, const Masks& masks) : MaskedBlock<Tile>(task, masks) {
    for (int s = 0; s < Tile::segments; ++s) {
      const std::uint32_t bits = this->factor(s).bits;
      factors_[s] = (bits & 0x7fffu) == 0 ? 0 : bits * 0x10001u;
    }
  }

  __device__ __forceinline__ bool patch(T*, const std::uint32_t*, int, int) const { return false; }

  // For the warp's outputs and the 32 elements from `depth` of the stage on, which is element `inner` of the sum.
  __device__ __forceinline__ Bits bits(const std::uint32_t* words, int segment, int depth, int inner) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    words += segment * Tile::words;
    Bits bits;
    if constexpr (Tile::transposed) {
      const int column = warp * 16 * outer_tiles / 32;
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // elements 2t, 2t + 8, 2t + 16, 2t + 24 and those behind them
        const std::uint32_t* row = words + (depth + 8 * i + 2 * t) * Tile::word_columns + column;
        bits.even[i] = row[0] << (7 - g);
        bits.odd[i] = row[Tile::word_columns] << (7 - g);
      }
    } else {
      const std::uint32_t existing = this->existing(inner);
#pragma unroll
      for (int i = 0; i < 2 * outer_tiles; ++i) {  // outputs g, g + 8 of each tile
        const int row = warp * 16 * outer_tiles + 8 * i + g;
        const std::uint32_t word = words[row * Tile::word_columns + depth / 32] & existing;
        bits.even[i] = word << (7 - 2 * t);
        bits.odd[i] = word << (6 - 2 * t);
      }
    }
    return bits;
  }

  // Half (0 or 1) of the 32 elements, for one of the warp's tiles of 16 outputs.
  __device__ __forceinline__ void ablate(std::uint32_t (&to)[4], const std::uint32_t (&weights)[4], const Bits& bits,
                                         int segment, int tile, int half) const {
    const int warp = threadIdx.x / 32;
    const std::uint32_t factor = factors_[segment];
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // register i: outputs g + 8 * (i % 2), elements 2t and 2t + 1 + 8 * (i / 2)
      const int word = Tile::transposed ? 2 * half + i / 2 : 2 * tile + i % 2;
      const int byte = Tile::transposed ? (warp * 2 * outer_tiles) % 4 + 2 * tile + i % 2 : 2 * half + i / 2;
      const std::uint32_t gone = permute(bits.even[word], bits.odd[word], 0xcc88u + 0x1111u * byte);
      const std::uint32_t instead = factor == 0 ? 0 : multiply_pairs(T{}, weights[i], factor);
      to[i] = (weights[i] & ~gone) | (instead & gone);
    }
  }

 private:
  std::uint32_t factors_[Tile::segments];
};

// Changes float32 weights in registers: for kernels whose threads have an output each, and share none.
template <class Tile>
class MaskedFew : public MaskedBlock<Tile> {
 public:
  using MaskedBlock<Tile>::MaskedBlock;

  __device__ __forceinline__ bool patch(float*, const std::uint32_t*, int, int) const { return false; }

  // Four elements from `depth` of the stage on, whose first is element `inner` of the sum.
  __device__ __forceinline__ float4 ablated(const float4& weights, float factor, const std::uint32_t* words, int segment,
                                            int output, int depth, int inner) const {
    words += segment * Tile::words;
    std::uint32_t bits[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if constexpr (Tile::transposed) {
        bits[e] = words[(depth + e) * Tile::word_columns + output / 32] >> (output % 32);
      } else {
        bits[e] = (words[output] & this->existing(inner)) >> (depth + e);
      }
    }
    return {one(weights.x, factor, bits[0]), one(weights.y, factor, bits[1]), one(weights.z, factor, bits[2]),
            one(weights.w, factor, bits[3])};
  }

 private:
  static_assert(Tile::depth == 32);
  __device__ __forceinline__ static float one(float weight, float factor, std::uint32_t bit) {
    const float instead = factor == 0.0f ? 0.0f : weight * factor;
    return bit & 1u ? instead : weight;
  }
};

struct EditTile {  // a run of rows under one edit
  int group;       // -1 if the edit is empty
  int first_row;
  int rows;
};

struct Edits {
  const EditTile* tiles;
  const int* positions;         // [groups, parts + 1, n]: the first entry at or behind element part * width of a row
  const std::int64_t* indices;  // ascending within a group
  const float* factors;
  int n;
  int k;
  int parts;
};

// Changes the tile in shared memory, element by element of the edit.
template <class Tile>
class EditedTile {
 public:
  using T = typename Tile::Type;
  static constexpr int words_per_stage = 0;
  static_assert(Tile::segments == 1 && Tile::weight_rows <= block_threads);

  __device__ __forceinline__ EditedTile(const Linear&, const Edits& edits)
      : edits_(edits), tile_(edits.tiles[blockIdx.x]) {
    const int row = static_cast<int>(blockIdx.y) * Tile::outer + static_cast<int>(threadIdx.x);
    if (!Tile::transposed && tile_.group >= 0 && threadIdx.x < Tile::weight_rows && row < edits.n) {
      next_ = position(0, row);
      end_ = position(1, row);
    }
  }

  __device__ __forceinline__ std::int64_t first_row(int) const { return tile_.first_row; }
  __device__ __forceinline__ int rows(int) const { return tile_.rows; }
  __device__ __forceinline__ void copy(std::uint32_t*, int, int) const {}

  // One thread per row of the tile. Along the sum it goes on where it stopped; across, it looks up where it begins.
  __device__ __forceinline__ bool patch(T* weight, const std::uint32_t*, int outer, int inner) {
    if (tile_.group < 0) return false;
    const int first_row = Tile::transposed ? inner : outer, first_column = Tile::transposed ? outer : inner;
    const int own = threadIdx.x;
    if (own >= Tile::weight_rows || first_row + own >= edits_.n) return true;
    if (Tile::transposed) {
      next_ = position(outer / Tile::outer, first_row + own);
      end_ = position(outer / Tile::outer + 1, first_row + own);
    }
    const std::int64_t first = std::int64_t{first_row + own} * edits_.k + first_column;
    T* elements = weight + own * Tile::weight_stride;
    for (; next_ < end_; ++next_) {
      const std::int64_t column = edits_.indices[next_] - first;
      if (column >= Tile::weight_columns) break;
      const float factor = edits_.factors[next_];
      elements[column] = factor == 0.0f ? T{} : scaled(elements[column], from_float<T>(factor));
    }
    return true;
  }

 private:
  __device__ __forceinline__ int position(int part, int row) const {
    return edits_.positions[(std::int64_t{tile_.group} * (edits_.parts + 1) + part) * edits_.n + row];
  }

  const Edits& edits_;
  EditTile tile_;
  int next_ = 0;
  int end_ = 0;
};

}  // namespace cad_fast::cuda
