// The core on the tile unit: up to 2 x 2 tiles of sums, so that what is loaded of either factor is used twice.
#pragma once

#include "cpu/tiles/unit.h"
#include "tiles.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

// Tiles 0 to 3 hold sums, 4 and 5 rows of a, 6 and 7 columns of b. Those of b always have all their rows and bytes: the
// factors are padded with zeros along the sum, and nobody reads the sums of columns that are not there.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() {
    if (rows_ != 0) TileUnit::release();
  }

  // For so many rows of a (1 to 32): no others are read or written.
  void use_rows(std::int64_t rows) {
    if (rows == rows_) return;
    rows_ = rows;
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) {
      const bool low = tile == 2 || tile == 3 || tile == 5;
      std::int64_t count = tile_side;
      if (tile < 6) count = low ? rows - tile_side : rows;
      config.rows[tile] = static_cast<std::uint8_t>(count < 0 ? 0 : count < tile_side ? count : tile_side);
      config.row_bytes[tile] = config.rows[tile] == 0 ? 0 : 2 * tile_depth;
    }
    TileUnit::configure(config);
  }

 private:
  std::int64_t rows_ = 0;  // that the tiles are set to; 0 before they are
};

// The factors are cut into steps along the sum. b lies in pairs of elements: [16 pairs][columns][2] for each step.
struct Factors {
  const bfloat16* a;
  std::int64_t a_stride;  // bytes from row to row; a step is 64 bytes
  const bfloat16* b;
  std::int64_t b_stride;  // bytes from pair to pair
  std::int64_t steps;
};

// Rows of sums lie 32 floats apart.
constexpr std::int64_t sums_stride = 4 * panel_width;

template <int down, int across>
void multiply_tiles(const Factors& factors, float* sums, bool accumulate) {
  auto* low_sums = sums + tile_side * panel_width;
  if (accumulate) {
    TileUnit::load<0>(sums, sums_stride);
    if constexpr (across == 2) TileUnit::load<1>(sums + tile_side, sums_stride);
    if constexpr (down == 2) TileUnit::load<2>(low_sums, sums_stride);
    if constexpr (down == 2 && across == 2) TileUnit::load<3>(low_sums + tile_side, sums_stride);
  } else {
    TileUnit::zero<0>();
    if constexpr (across == 2) TileUnit::zero<1>();
    if constexpr (down == 2) TileUnit::zero<2>();
    if constexpr (down == 2 && across == 2) TileUnit::zero<3>();
  }
  const auto* a = reinterpret_cast<const std::uint8_t*>(factors.a);
  const auto* b = reinterpret_cast<const std::uint8_t*>(factors.b);
  for (std::int64_t step = 0; step < factors.steps; ++step) {
    TileUnit::load<6>(b, factors.b_stride);
    TileUnit::load<4>(a, factors.a_stride);
    TileUnit::multiply<0, 4, 6>();
    if constexpr (across == 2) {
      TileUnit::load<7>(b + 64, factors.b_stride);
      TileUnit::multiply<1, 4, 7>();
    }
    if constexpr (down == 2) {
      TileUnit::load<5>(a + tile_side * factors.a_stride, factors.a_stride);
      TileUnit::multiply<2, 5, 6>();
      if constexpr (across == 2) TileUnit::multiply<3, 5, 7>();
    }
    a += 2 * tile_depth;
    b += tile_side * factors.b_stride;
  }
  TileUnit::store<0>(sums, sums_stride);
  if constexpr (across == 2) TileUnit::store<1>(sums + tile_side, sums_stride);
  if constexpr (down == 2) TileUnit::store<2>(low_sums, sums_stride);
  if constexpr (down == 2 && across == 2) TileUnit::store<3>(low_sums + tile_side, sums_stride);
}

// Of so many rows of a and columns of b, 32 of either at most.
[[maybe_unused]] void multiply(Tiles& tiles, std::int64_t rows, std::int64_t columns, const Factors& factors,
                               float* sums, bool accumulate) {
  tiles.use_rows(rows);
  const auto function = rows > tile_side ? columns > tile_side ? multiply_tiles<2, 2> : multiply_tiles<2, 1>
                        : columns > tile_side ? multiply_tiles<1, 2> : multiply_tiles<1, 1>;
  function(factors, sums, accumulate);
}

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
