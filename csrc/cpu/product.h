// The loops around the dense core: panels of the weight are packed once and used for every segment of rows, each
// segment seeing them as its Weights edits them.
#pragma once

#include "cpu/gemm.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

// Hands out parts of a thread's scratch memory, on cache lines.
class Scratch {
 public:
  explicit Scratch(std::uint8_t* memory) : next_(memory) {}

  template <class T>
  T* take(std::int64_t count) {
    auto* taken = reinterpret_cast<T*>(next_);
    next_ += ceil_div(count * static_cast<std::int64_t>(sizeof(T)), 64) * 64;
    return taken;
  }

 private:
  std::uint8_t* next_;
};

// Elements along the sum that are packed at once. It decides the order of the sums.
template <class Steps>
constexpr std::int64_t elements_per_block(std::int64_t inner) {
  const std::int64_t steps = ceil_div(inner, Steps::step_size);
  const std::int64_t blocks = ceil_div(steps, block_steps);
  return blocks == 0 ? 1 : ceil_div(ceil_div(steps, blocks), 32) * 32 * Steps::step_size;
}

// What is packed at a time.
struct Block {
  std::int64_t column, columns;    // the outputs
  std::int64_t element, elements;  // along the sum
  bool first_of_chunk;             // whether this thread begins a chunk of rows with these columns

  std::int64_t panels() const { return ceil_div(columns, panel_width); }

  Part part(std::int64_t panel) const {
    const std::int64_t first = panel * panel_width;
    const std::int64_t left = columns - first;
    return {column + first, left < panel_width ? left : panel_width, element, elements};
  }
};

// What a segment multiplies by: panels, and the bits of what to keep of them or null for all. The first tile of rows
// writes what it has masked, if there is a place for it, and the others read it there.
template <class Steps>
struct Operand {
  const typename Steps::Element* panels;
  const typename Steps::Bits* kept = nullptr;
  typename Steps::Element* written = nullptr;
  Region ahead = {};  // what the next segment needs
};

// Tiles of x as they are.
class PlainRows {
 public:
  explicit PlainRows(const Linear& task) : task_(task) {}

  template <class Steps, class Input>
  void pack(std::int64_t row, std::int64_t rows, std::int64_t element, std::int64_t count,
            typename Steps::Element* target, std::int64_t stride) const {
    const auto* x = static_cast<const Input*>(task_.x) + row * task_.inner + element;
    pack_tile<Steps>(x, task_.inner, rows, count, target, stride);
  }

 private:
  const Linear& task_;
};

// Weights is the op's part:
//   std::int64_t segment_of(row)          the segment that a row belongs to
//   std::int64_t end_of(segment)          the row behind a segment
//   Operand<Steps> edit(block, segment, packed)   the panels for a segment, possibly edited in place
//   void restore(packed)                  undoes what edit did to the packed panels
//   bool mixes                            whether it has what follows, for AVX-512
//   std::int64_t mixed_rows(row, last)    how many rows from this one on to take together, each with bits of its own
//   const Bits* keep(block, panel, row, rows)   those bits, block_steps apart
// Rows copies tiles of x, for an op that changes them on the way.
template <class Input, class Weights, class Rows = PlainRows>
class Product {
 public:
  using Steps = typename StepsOf<Input>::Type;
  using Element = typename Steps::Element;

  Product(const Linear& task, Weights& weights, Scratch& scratch) : Product(task, weights, scratch, Rows(task)) {}

  Product(const Linear& task, Weights& weights, Scratch& scratch, Rows rows)
      : task_(task),
        weights_(weights),
        rows_(rows),
        packed_(scratch.take<Element>(block_panels * panel_width * block_steps * Steps::step_size)),
        tile_(scratch.take<Element>(most_tile_rows * tile_steps * Steps::step_size)),
        edge_(scratch.take<float>(most_tile_rows * block_panels * panel_width)),
        bias_(scratch.take<float>(block_panels * panel_width)),
        sums_(scratch.take<float>(0)) {}

  // The units [begin, end).
  void run(std::int64_t begin, std::int64_t end) {
    const std::int64_t panels = task_.panels();
    while (begin < end) {
      const std::int64_t chunk = begin / panels;
      const std::int64_t first = begin % panels;
      const std::int64_t last = end - begin < panels - first ? first + end - begin : panels;
      run_chunk(chunk, first, last);
      begin += last - first;
    }
  }

 private:
  void run_chunk(std::int64_t chunk, std::int64_t panel, std::int64_t last) {
    first_row_ = task_.first_row(chunk);
    last_row_ = task_.first_row(chunk + 1);
    // Blocks of nearly equal size: a small one at the end would be as dear to copy x for as a large one.
    const std::int64_t first = panel;
    for (std::int64_t blocks = ceil_div(last - panel, block_panels); blocks > 0; --blocks) {
      const std::int64_t count = ceil_div(last - panel, blocks);
      run_columns(panel * panel_width, count * panel_width, panel == first);
      panel += count;
    }
  }

  void run_columns(std::int64_t column, std::int64_t columns, bool first) {
    if (columns > task_.outer - column) columns = task_.outer - column;
    load_bias(column, columns);
    const std::int64_t most = elements_per_block<Steps>(task_.inner);
    std::int64_t element = 0;
    do {
      const std::int64_t left = task_.inner - element;
      const Block block{column, columns, element, left < most ? left : most, first};
      element += most;
      if (element < task_.inner) {
        plan_weight(block, column, element);
      } else {
        plan_weight(block, column + columns, 0);
      }
      run_block(block);
    } while (element < task_.inner);
    if constexpr (sizeof(Input) < 4) round_sums(column, columns);
  }

  void load_bias(std::int64_t column, std::int64_t columns) {
    if (task_.bias == nullptr) return;
    const auto* bias = static_cast<const Input*>(task_.bias) + column;
    for (std::int64_t i = 0; i < block_panels * panel_width; ++i) bias_[i] = i < columns ? to_float(bias[i]) : 0;
  }

  void run_block(const Block& block) {
    const auto* weight = static_cast<const Input*>(task_.weight);
    for (std::int64_t panel = 0; panel < block.panels(); ++panel) {
      Element* target = packed_ + panel * panel_width * block_steps * Steps::step_size;
      if (task_.transposed) {
        pack_columns<Steps>(weight, task_.outer, block.part(panel), target);
      } else {
        pack_rows<Steps>(weight, task_.inner, block.part(panel), target);
      }
    }
    for (std::int64_t row = first_row_; row < last_row_;) {
#if defined(__AVX512F__)
      if constexpr (Weights::mixes) {
        if (const std::int64_t rows = weights_.mixed_rows(row, last_row_); rows > 1) {
          run_mixed(block, row, row + rows);
          row += rows;
          continue;
        }
      }
#endif
      const std::int64_t segment = weights_.segment_of(row);
      const std::int64_t end = weights_.end_of(segment);
      const std::int64_t last = end < last_row_ ? end : last_row_;
      const Operand<Steps> operand = weights_.edit(block, segment, packed_);
      ahead_.segment = operand.ahead;
      run_rows(block, row, last, operand);
      weights_.restore(packed_);
      row = last;
    }
  }

#if defined(__AVX512F__)

  // Rows of several segments in one tile, each with bits of its own.
  void run_mixed(const Block& block, std::int64_t row, std::int64_t last) {
    Tile<Steps> tile{};
    tile.x = tile_;
    tile.steps = ceil_div(block.elements, Steps::step_size);
    tile.accumulate = block.element > 0;
    const bool with_bias = task_.bias != nullptr && block.element + block.elements == task_.inner;
    for (std::int64_t tiles = ceil_div(last - row, tile_rows); tiles > 0; --tiles) {
      const auto rows = static_cast<int>(ceil_div(last - row, tiles));
      rows_.template pack<Steps, Input>(row, rows, block.element, block.elements, tile_, tile_steps * Steps::step_size);
      for (std::int64_t panel = 0; panel < block.panels(); ++panel) {
        const std::int64_t column = panel * panel_width;
        tile.panels = packed_ + column * block_steps * Steps::step_size;
        tile.kept = weights_.keep(block, panel, row, rows);
        tile.bias = with_bias ? bias_ + column : nullptr;
        place_output(tile, block, row);
        tile.y += column;
        ahead_.take(ceil_div(tile.steps, ahead_steps), tile.ahead);
        multiply_each(rows, block.columns - column, tile, edge_);
      }
      row += rows;
    }
  }

#endif

  // Where a tile writes the sums of its rows, from `row` on.
  void place_output(Tile<Steps>& tile, const Block& block, std::int64_t row) const {
    if constexpr (sizeof(Input) < 4) {
      tile.y_stride = block_panels * panel_width;
      tile.y = sums_ + (row - first_row_) * tile.y_stride;
    } else {
      tile.y_stride = task_.outer;
      tile.y = static_cast<float*>(task_.y) + row * task_.outer + block.column;
    }
  }

  void run_rows(const Block& block, std::int64_t row, std::int64_t last, Operand<Steps> operand) {
    Tile<Steps> tile;
    tile.x = tile_;
    tile.panels = operand.panels;
    tile.kept = operand.kept;
    tile.written = operand.written;
    tile.lane = 0;
    tile.steps = ceil_div(block.elements, Steps::step_size);
    tile.accumulate = block.element > 0;
    tile.bias = task_.bias != nullptr && block.element + block.elements == task_.inner ? bias_ : nullptr;
    constexpr std::int64_t size = sizeof(Input);
    const std::int64_t most = operand.kept != nullptr && operand.written == nullptr ? most_tile_rows : tile_rows;
    for (std::int64_t tiles = ceil_div(last - row, most); tiles > 0; --tiles) {
      const auto rows = static_cast<int>(ceil_div(last - row, tiles));
      rows_.template pack<Steps, Input>(row, rows, block.element, block.elements, tile_, tile_steps * Steps::step_size);
      const auto* x = static_cast<const Input*>(task_.x) + row * task_.inner + block.element;
      // Behind the segment's last rows come the next one's.
      const std::int64_t behind = last_row_ - row - rows;
      const std::int64_t next = behind < rows ? behind : rows;
      ahead_.rows = next <= 0 ? Region() : Region(x + rows * task_.inner, task_.inner * size, next, block.elements * size);
      place_output(tile, block, row);
      multiply_block(rows, block.columns, tile, ahead_, edge_);
      row += rows;
      if (tile.written != nullptr) {
        tile.panels = tile.written;
        tile.kept = nullptr;
        tile.written = nullptr;
      }
    }
  }

  // The weight of the block that comes next. Packing would wait for it otherwise, as it reads 32 rows side by side, too
  // many for the CPU to foresee.
  void plan_weight(const Block& block, std::int64_t column, std::int64_t element) {
    ahead_.weight = {};
    const std::int64_t left = task_.outer - column;
    if (task_.transposed || left <= 0) return;
    constexpr std::int64_t size = sizeof(Input);
    const auto* weight = static_cast<const Input*>(task_.weight) + column * task_.inner + element;
    const std::int64_t there = task_.inner - element;
    ahead_.weight = Region(weight, task_.inner * size, left < block.columns ? left : block.columns,
                           (there < block.elements ? there : block.elements) * size);
  }

  void round_sums(std::int64_t column, std::int64_t columns) {
    for (std::int64_t row = first_row_; row < last_row_; ++row) {
      const float* sums = sums_ + (row - first_row_) * block_panels * panel_width;
      auto* y = static_cast<Input*>(task_.y) + row * task_.outer + column;
      for (std::int64_t i = 0; i < columns; ++i) store_as(sums[i], y + i);
    }
  }

  const Linear& task_;
  Weights& weights_;
  Rows rows_;
  Element* packed_;
  Element* tile_;
  float* edge_;
  float* bias_;
  float* sums_;  // of bfloat16 outputs: [rows of the chunk, columns of the block]; last, so of any length
  Ahead ahead_;
  std::int64_t first_row_ = 0;
  std::int64_t last_row_ = 0;
};

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
