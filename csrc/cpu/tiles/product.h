// The loops around the tile unit. A block of the weight, 32 outputs by 512 elements of the sum at most, is made once for each
// segment of rows, as that has it, and multiplied by all its strips of rows.
//
// The weight is never packed beforehand: as its rows lie along the sum they are rows of a tile, and the sums come out with
// outputs as rows; x is packed in pairs for all panels. The rows of a transposed weight lie along the outputs: they become
// columns of a tile on the way, x gives the rows, as it is.
//
// Every output is summed step by step along the sum, then comes the bias: no matter which strips and panels there are.
#pragma once

#include "cpu/product.h"
#include "cpu/tiles/block.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

// Weights is the op's part; target holds a block as write_rows writes it, or write_columns if the weight is transposed:
//   std::int64_t segment_of(row)                 the segment that a row belongs to
//   std::int64_t end_of(segment)                 the row behind a segment
//   void begin(block, target)                    before the first segment of a block
//   void edit(block, segment, target)            makes the block as the segment has it
//   void restore(target)                         undoes what edit did, before the next
template <class Weights>
class TileProduct {
 public:
  TileProduct(const Linear& task, Weights& weights, Scratch& scratch)
      : task_(task),
        weights_(weights),
        strips_(scratch.take<Strip>(strips_at_once(task))),
        x_(scratch.take<bfloat16>(strips_at_once(task) * strip_bytes(task) / 2)),
        sums_(scratch.take<float>(strips_at_once(task) * strip_rows * panel_width)),
        block_(scratch.take<bfloat16>(panel_width * tile_stride / 2)),
        last_step_(scratch.take<bfloat16>(strip_rows * tile_depth)) {}

  // The units [begin, end), see Linear.
  void run(std::int64_t begin, std::int64_t end) {
    const std::int64_t panels = task_.panels();
    while (begin < end) {
      const std::int64_t chunk = begin / panels, first = begin % panels;
      const std::int64_t last = end - begin < panels - first ? first + end - begin : panels;
      const std::int64_t behind = task_.first_row(chunk + 1);
      for (std::int64_t row = task_.first_row(chunk); row < behind;) {
        row = cut_strips(row, behind);
        for (std::int64_t panel = first; panel < last; ++panel) run_panel(panel, panel == first);
      }
      begin += last - first;
    }
  }

 private:
  // The next strips, from `row` on, and what is packed for them. Returns the row behind them.
  std::int64_t cut_strips(std::int64_t row, std::int64_t behind) {
    const auto* x = static_cast<const bfloat16*>(task_.x);
    const std::int64_t most = strips_at_once(task_);
    std::int64_t packed = 0;
    for (count_ = 0; count_ < most && row < behind; ++count_) {
      const std::int64_t segment = weights_.segment_of(row);
      const std::int64_t end = weights_.end_of(segment) < behind ? weights_.end_of(segment) : behind;
      const std::int64_t rows = end - row < strip_rows ? end - row : strip_rows;
      const std::int64_t width = rows > tile_side ? strip_rows : tile_side;
      strips_[count_] = {row, segment, rows, width, packed};
      if (!task_.transposed) {
        pack_pairs(x + row * task_.inner, task_.inner, rows, task_.inner, width, x_ + packed);
        packed += padded_depth(task_.inner) * width;
      }
      row += rows;
    }
    return row;
  }

  void run_panel(std::int64_t panel, bool first) {
    const std::int64_t output = panel * panel_width, left = task_.outer - output;
    const std::int64_t outputs = left < panel_width ? left : panel_width;
    const std::int64_t most = elements_per_block();
    std::int64_t element = 0;
    do {
      const std::int64_t behind = task_.inner - element;
      run_block({output, outputs, element, behind < most ? behind : most, first});
      element += most;
    } while (element < task_.inner);
    alignas(64) float bias[panel_width] = {};
    if (task_.bias != nullptr) {
      for (std::int64_t i = 0; i < outputs; ++i) bias[i] = to_float(static_cast<const bfloat16*>(task_.bias)[output + i]);
    }
    const auto store = task_.transposed ? store_rows : store_turned;
    for (std::int64_t i = 0; i < count_; ++i) {
      auto* y = static_cast<bfloat16*>(task_.y) + strips_[i].row * task_.outer + output;
      store(sums_of(i), bias, strips_[i].rows, outputs, y, task_.outer);
    }
  }

  // Blocks of nearly equal size.
  std::int64_t elements_per_block() const {
    const std::int64_t blocks = ceil_div(task_.inner, tile_block);
    return blocks == 0 ? tile_depth : padded_depth(ceil_div(task_.inner, blocks));
  }

  void run_block(const TileBlock& block) {
    weights_.begin(block, block_);
    std::int64_t segment = -1;
    for (std::int64_t i = 0; i < count_; ++i) {
      if (strips_[i].segment != segment) {
        if (segment >= 0) weights_.restore(block_);
        segment = strips_[i].segment;
        weights_.edit(block, segment, block_);
      }
      task_.transposed ? multiply_rows(block, i) : multiply_outputs(block, i);
    }
  }

  // Outputs are rows of the sums, rows of x their columns.
  void multiply_outputs(const TileBlock& block, std::int64_t i) {
    const Strip& strip = strips_[i];
    const bfloat16* x = x_ + strip.x + block.element * strip.width;
    const Factors factors{block_, tile_stride, x, 4 * strip.width, ceil_div(block.elements, tile_depth)};
    multiply(tiles_, block.outputs, strip.width, factors, sums_of(i), block.element > 0);
  }

  // Rows of x are rows of the sums. A last step that is not whole comes from a copy with zeros behind it.
  void multiply_rows(const TileBlock& block, std::int64_t i) {
    const Strip& strip = strips_[i];
    const auto* x = static_cast<const bfloat16*>(task_.x) + strip.row * task_.inner + block.element;
    const std::int64_t whole = block.elements / tile_depth, rest = block.elements % tile_depth;
    const Factors factors{x, 2 * task_.inner, block_, 4 * panel_width, whole};
    if (whole > 0 || rest == 0) {
      multiply(tiles_, strip.rows, panel_width, factors, sums_of(i), block.element > 0);
    }
    if (rest == 0) return;
    const __mmask32 there = first_elements(rest);
    x += whole * tile_depth;
    for (std::int64_t r = 0; r < strip.rows; ++r) {
      _mm512_storeu_si512(last_step_ + r * tile_depth, _mm512_maskz_loadu_epi16(there, x + r * task_.inner));
    }
    const bfloat16* b = block_ + whole * tile_depth * panel_width;
    const Factors last{last_step_, 2 * tile_depth, b, 4 * panel_width, 1};
    multiply(tiles_, strip.rows, panel_width, last, sums_of(i), block.element + whole * tile_depth > 0);
  }

  float* sums_of(std::int64_t strip) const { return sums_ + strip * strip_rows * panel_width; }

  const Linear& task_;
  Weights& weights_;
  Strip* strips_;
  bfloat16* x_;
  float* sums_;      // of each strip: [32][32], rows of x by outputs if transposed, else outputs by rows of x
  bfloat16* block_;
  bfloat16* last_step_;
  std::int64_t count_ = 0;
  Tiles tiles_;
};

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
