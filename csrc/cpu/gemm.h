// The dense core of the linear ops: y = x W^T where the packed weight changes from one segment of rows to the next.
//
// Every output is summed in one order, whatever rows it shares the call with: step by step within a block of the inner
// dimension, then block by block, then the bias. Tile heights, segments and threads only choose which sums are held in
// registers together.
#pragma once

#include "cpu/panel.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

constexpr std::int64_t tile_steps = block_steps + 16;  // padded, or all rows of a tile would lie in a few cache sets

template <class Steps>
struct Tile {
  const typename Steps::Element* x;       // rows tile_steps steps apart
  const typename Steps::Element* panels;  // block_steps steps apart
  const typename Steps::Bits* kept;       // bits of the weights to keep, or null for all; block_steps apart
  int lane;                               // of its panel, where the tile begins
  std::int64_t steps;
  float* y;
  std::int64_t y_stride;
  const float* bias;  // or null
  bool accumulate;    // onto what is in y
};

template <class Steps, bool masked>
Vec load_weights(const Tile<Steps>& tile, std::int64_t step, int column) {
  constexpr std::int64_t step_length = panel_width * Steps::step_size;
  const std::int64_t panel = column / panel_width;
  const int lane = column % panel_width;
  const auto* address = tile.panels + (panel * block_steps + step) * step_length + lane * Steps::step_size;
#if defined(__AVX512F__)
  if constexpr (masked) return Steps::load_kept(address, tile.kept + panel * block_steps + step, tile.lane + lane);
#endif
  return Steps::load_step(address);
}

template <class Steps, bool masked, int rows, int vectors>
void multiply_tile(const Tile<Steps>& tile) {
  Vec sum[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sum[r][v] = zero();
  }
  // y comes from far away where another block of the sum came before; unasked for, the end of the tile would wait for it.
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) __builtin_prefetch(tile.y + r * tile.y_stride + v * lanes, 1);
  }
  for (std::int64_t step = 0; step < tile.steps; ++step) {
    Vec w[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) w[v] = load_weights<Steps, masked>(tile, step, v * lanes);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vec x = Steps::broadcast_step(tile.x + (r * tile_steps + step) * Steps::step_size);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[r][v] = Steps::multiply_add_step(x, w[v], sum[r][v]);
    }
  }
  const Tile<Steps> out = tile;  // a copy, which stores to y cannot change
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      float* y = out.y + r * out.y_stride + v * lanes;
      Vec result = sum[r][v];
      if (out.accumulate) result = add(load(y), result);
      if (out.bias != nullptr) result = add(result, load(out.bias + v * lanes));
      store(y, result);
    }
  }
}

template <class Steps, bool masked, int vectors, int rows>
void multiply_rows(int count, const Tile<Steps>& tile) {
  if (count == rows) return multiply_tile<Steps, masked, rows, vectors>(tile);
  if constexpr (rows > 1) multiply_rows<Steps, masked, vectors, rows - 1>(count, tile);
}

template <class Steps, int vectors, int most_rows>
void multiply_columns(int rows, const Tile<Steps>& tile) {
#if defined(__AVX512F__)
  if (tile.kept != nullptr) return multiply_rows<Steps, true, vectors, most_rows>(rows, tile);
#endif
  multiply_rows<Steps, false, vectors, most_rows>(rows, tile);
}

// A tile whose y is not whole vectors goes through a buffer.
template <class Steps, int vectors, int most_rows>
void multiply_edge(int rows, std::int64_t columns, Tile<Steps> tile, float* buffer) {
  constexpr std::int64_t width = vectors * lanes;
  float* y = tile.y;
  const std::size_t size = static_cast<std::size_t>(columns) * sizeof *y;
  for (int r = 0; r < rows && tile.accumulate; ++r) std::memcpy(buffer + r * width, y + r * tile.y_stride, size);
  const std::int64_t y_stride = tile.y_stride;
  tile.y = buffer;
  tile.y_stride = width;
  multiply_columns<Steps, vectors, most_rows>(rows, tile);
  for (int r = 0; r < rows; ++r) std::memcpy(y + r * y_stride, buffer + r * width, size);
}

// Strips of so many vectors, from `column` on, as long as that leaves none of their pairs of vectors idle.
template <class Steps, int vectors, int most_rows>
std::int64_t multiply_strips(int rows, std::int64_t column, std::int64_t columns, const Tile<Steps>& block,
                             float* buffer) {
  constexpr std::int64_t width = vectors * lanes;
  constexpr std::int64_t idle = width < 2 * lanes ? 0 : width - 2 * lanes;
  for (; columns - column > idle; column += width) {
    Tile<Steps> tile = block;
    const std::int64_t panel = column / panel_width;
    tile.panels += (panel * block_steps * panel_width + column % panel_width) * Steps::step_size;
    if (tile.kept != nullptr) tile.kept += panel * block_steps;
    tile.lane = static_cast<int>(column % panel_width);
    if (tile.bias != nullptr) tile.bias += column;
    tile.y += column;
    if (columns - column >= width) {
      multiply_columns<Steps, vectors, most_rows>(rows, tile);
    } else {
      multiply_edge<Steps, vectors, most_rows>(rows, columns - column, tile, buffer);
    }
  }
  return column;
}

// A tile of x with all the columns of a block. Panels and bias are padded to whole panels, y is not.
template <class Steps>
void multiply_block(int rows, std::int64_t columns, const Tile<Steps>& block, float* buffer) {
  std::int64_t column = 0;
  if constexpr (lanes > 4) {
    // Few rows leave registers for more columns; without them the latency of the additions would show.
    if (rows == 1) column = multiply_strips<Steps, 8, 1>(rows, column, columns, block, buffer);
    if (rows <= 3) column = multiply_strips<Steps, 4, 3>(rows, column, columns, block, buffer);
  }
#if defined(__AVX512F__)
  if (rows > tile_rows) multiply_strips<Steps, 1, most_tile_rows>(rows, column, columns, block, buffer);
#endif
  if (rows <= tile_rows) multiply_strips<Steps, 2, tile_rows>(rows, column, columns, block, buffer);
}

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
