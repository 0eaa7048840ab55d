// The dense core of the linear ops: y = x W^T where the packed weight changes from one segment of rows to the next.
//
// Every output is summed in one order, whatever rows it shares the call with: step by step within a block of the inner
// dimension, then block by block, then the bias. Tile heights, segments and threads only choose which sums are held in
// registers together.
#pragma once

#include "cpu/ahead.h"
#include "cpu/panel.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

constexpr std::int64_t tile_steps = block_steps + 16;  // padded, or all rows of a tile would lie in a few cache sets

template <class Steps>
struct Tile {
  const typename Steps::Element* x;       // rows tile_steps steps apart
  const typename Steps::Element* panels;  // block_steps steps apart
  const typename Steps::Bits* kept;       // bits of the weights to keep, or null for all; block_steps apart
  typename Steps::Element* written;       // where the panels go as kept has them, or null
  int lane;                               // of its panel, where the tile begins
  std::int64_t steps;
  float* y;
  std::int64_t y_stride;
  const float* bias;  // or null
  bool accumulate;    // onto what is in y
  Lines ahead[2];     // fetched on the way
};

// Between two lines that are fetched ahead.
constexpr std::int64_t ahead_steps = 4;

// What a tile does with the bits of what to keep. With `each` every row has its own, block_steps apart.
enum class Kept { all, masked, written, each };

// Where a tile reads its next steps. Addresses that move along leave no arithmetic between the multiplications, which would
// take their ports.
template <class Steps, Kept kept>
struct Place {
  const typename Steps::Element* x;
  const typename Steps::Element* panels;
  const std::uint8_t* kept_bits;
  typename Steps::Element* written;

  explicit Place(const Tile<Steps>& tile) : x(tile.x), panels(tile.panels), kept_bits(nullptr), written(tile.written) {
    if (kept != Kept::all) {
      kept_bits = reinterpret_cast<const std::uint8_t*>(tile.kept) + tile.lane * Steps::step_size / 8;
    }
  }

  void advance(std::int64_t steps) {
    x += steps * Steps::step_size;
    panels += steps * panel_width * Steps::step_size;
    if (kept != Kept::all) kept_bits += steps * static_cast<std::int64_t>(sizeof(typename Steps::Bits));
    if (kept == Kept::written) written += steps * panel_width * Steps::step_size;
  }

  Vec weights(std::int64_t step, int column) const {
    const std::int64_t line = column / panel_width * block_steps + step;
    const int lane = column % panel_width;
    const std::int64_t place = (line * panel_width + lane) * Steps::step_size;
#if defined(__AVX512F__)
    if constexpr (kept == Kept::masked || kept == Kept::written) {
      const std::int64_t bits = line * static_cast<std::int64_t>(sizeof(typename Steps::Bits));
      const Vec w = Steps::load_kept(panels + place, kept_bits + bits + lane * Steps::step_size / 8);
      if constexpr (kept == Kept::written) Steps::store_step(written + place, w);
      return w;
    }
#endif
    return Steps::load_step(panels + place);
  }

#if defined(__AVX512F__)
  // What row r keeps of a vector of a panel; for steps of floats.
  __mmask16 kept_by(int r, std::int64_t step, int v) const {
    return load_mask(kept_bits + (r * block_steps + step) * static_cast<std::int64_t>(sizeof(typename Steps::Bits)) + 2 * v);
  }
#endif
};

template <class Steps, Kept kept, int rows, int vectors>
__attribute__((always_inline)) inline void add_step(const Place<Steps, kept>& at, std::int64_t step, Vec (&sum)[rows][vectors]) {
  Vec w[vectors];
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) w[v] = at.weights(step, v * lanes);
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    const typename Steps::Element* address = at.x + (r * tile_steps + step) * Steps::step_size;
    if constexpr (vectors == 1) {
      sum[r][0] = Steps::multiply_add_broadcast(address, w[0], sum[r][0]);
    } else {
      const Vec x = Steps::broadcast_step(address);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
#if defined(__AVX512F__)
        if constexpr (kept == Kept::each) {
          sum[r][v] = _mm512_mask3_fmadd_ps(x, w[v], sum[r][v], at.kept_by(r, step, v));
          continue;
        }
#endif
        sum[r][v] = Steps::multiply_add_step(x, w[v], sum[r][v]);
      }
    }
  }
}

template <class Steps, Kept kept, int rows, int vectors>
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
  Lines ahead[2] = {tile.ahead[0], tile.ahead[1]};
  Place<Steps, kept> at(tile);
  for (std::int64_t left = tile.steps; left > 0; left -= ahead_steps) {
    ahead[0].fetch();
    ahead[1].fetch();
    if (kept == Kept::masked && left >= ahead_steps) {
#pragma GCC unroll 4
      for (int step = 0; step < ahead_steps; ++step) add_step<Steps, kept, rows, vectors>(at, step, sum);
      at.advance(ahead_steps);
      continue;
    }
    for (std::int64_t step = left < ahead_steps ? left : ahead_steps; step > 0; --step) {
      add_step<Steps, kept, rows, vectors>(at, 0, sum);
      at.advance(1);
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

template <class Steps, Kept kept, int vectors, int rows>
void multiply_rows(int count, const Tile<Steps>& tile) {
  if (count == rows) return multiply_tile<Steps, kept, rows, vectors>(tile);
  if constexpr (rows > 1) multiply_rows<Steps, kept, vectors, rows - 1>(count, tile);
}

template <class Steps, int vectors, int most_rows>
void multiply_columns(int rows, const Tile<Steps>& tile) {
#if defined(__AVX512F__)
  if (tile.written != nullptr) return multiply_rows<Steps, Kept::written, vectors, most_rows>(rows, tile);
  if (tile.kept != nullptr) return multiply_rows<Steps, Kept::masked, vectors, most_rows>(rows, tile);
#endif
  multiply_rows<Steps, Kept::all, vectors, most_rows>(rows, tile);
}

// A tile whose y is not whole vectors goes through a buffer: multiply(tile) multiplies it.
template <class Steps, int vectors, class Multiply>
void multiply_edge(int rows, std::int64_t columns, Tile<Steps> tile, float* buffer, Multiply multiply) {
  constexpr std::int64_t width = vectors * lanes;
  float* y = tile.y;
  const std::size_t size = static_cast<std::size_t>(columns) * sizeof *y;
  for (int r = 0; r < rows && tile.accumulate; ++r) std::memcpy(buffer + r * width, y + r * tile.y_stride, size);
  const std::int64_t y_stride = tile.y_stride;
  tile.y = buffer;
  tile.y_stride = width;
  multiply(tile);
  for (int r = 0; r < rows; ++r) std::memcpy(y + r * y_stride, buffer + r * width, size);
}

// Strips of so many vectors, from `column` on, as long as that leaves none of their pairs of vectors idle.
template <class Steps, int vectors, int most_rows>
std::int64_t multiply_strips(int rows, std::int64_t column, std::int64_t columns, const Tile<Steps>& block,
                             Ahead& ahead, float* buffer) {
  constexpr std::int64_t width = vectors * lanes;
  constexpr std::int64_t idle = width < 2 * lanes ? 0 : width - 2 * lanes;
  for (; columns - column > idle; column += width) {
    Tile<Steps> tile = block;
    const std::int64_t panel = column / panel_width;
    const std::int64_t place = (panel * block_steps * panel_width + column % panel_width) * Steps::step_size;
    tile.panels += place;
    if (tile.written != nullptr) tile.written += place;
    if (tile.kept != nullptr) tile.kept += panel * block_steps;
    tile.lane = static_cast<int>(column % panel_width);
    if (tile.bias != nullptr) tile.bias += column;
    tile.y += column;
    ahead.take(ceil_div(tile.steps, ahead_steps), tile.ahead);
    if (columns - column >= width) {
      multiply_columns<Steps, vectors, most_rows>(rows, tile);
    } else {
      multiply_edge<Steps, vectors>(rows, columns - column, tile, buffer, [rows](const Tile<Steps>& whole) {
        multiply_columns<Steps, vectors, most_rows>(rows, whole);
      });
    }
  }
  return column;
}

// A tile of x with all the columns of a block. Panels and bias are padded to whole panels, y is not.
template <class Steps>
void multiply_block(int rows, std::int64_t columns, const Tile<Steps>& block, Ahead& ahead, float* buffer) {
  std::int64_t column = 0;
  if constexpr (lanes > 4) {
    // Few rows leave registers for more columns; without them the latency of the additions would show.
    if (rows == 1) column = multiply_strips<Steps, 8, 1>(rows, column, columns, block, ahead, buffer);
    if (rows <= 3) column = multiply_strips<Steps, 4, 3>(rows, column, columns, block, ahead, buffer);
  }
#if defined(__AVX512F__)
  if (rows > tile_rows) multiply_strips<Steps, 1, most_tile_rows>(rows, column, columns, block, ahead, buffer);
#endif
  if (rows <= tile_rows) multiply_strips<Steps, 2, tile_rows>(rows, column, columns, block, ahead, buffer);
}

#if defined(__AVX512F__)

// A tile with the columns of one panel, of which each row keeps what its own bits say.
template <class Steps>
void multiply_each(int rows, std::int64_t columns, const Tile<Steps>& tile, float* buffer) {
  if (columns >= panel_width) return multiply_rows<Steps, Kept::each, 2, tile_rows>(rows, tile);
  multiply_edge<Steps, 2>(rows, columns, tile, buffer, [rows](const Tile<Steps>& whole) {
    multiply_rows<Steps, Kept::each, 2, tile_rows>(rows, whole);
  });
}

#endif

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
