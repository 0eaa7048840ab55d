// The tile unit in plain C++, for CPUs without one: takes the place of csrc/cpu/tiles/unit.h. What hardware refuses, or leaves
// to chance, ends the process with a message. After Intel's manual, volume 2: LDTILECFG, TILELOADD, TDPBF16PS.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "bfloat16.h"
#include "cpu/tiles/config.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

struct TwinTile {
  int rows = 0, row_bytes = 0;
  unsigned char bytes[16][64] = {};
};

struct Twin {
  bool configured = false;
  TwinTile tiles[8];

  ~Twin() { require(!configured, "a thread ended with its tiles in use"); }

  static void require(bool right, const char* what) {
    if (right) return;
    std::fprintf(stderr, "tile twin: %s\n", what);
    std::abort();
  }

  static Twin& of_this_thread() {
    thread_local Twin twin;
    return twin;
  }
};

[[maybe_unused]] float without_denormals(float v) {
  const std::uint32_t bits = bits_of(v);
  return bits & 0x7f800000u ? v : float_of(bits & 0x80000000u);
}

struct TileUnit {
  static void configure(const TileConfig& config) {
    Twin& twin = Twin::of_this_thread();
    Twin::require(config.palette == 1, "the palette must be 1");
    Twin::require(config.start_row == 0, "the first row must be 0");
    for (const std::uint8_t byte : config.reserved) Twin::require(byte == 0, "reserved bytes must be 0");
    for (int i = 0; i < 16; ++i) {
      const int rows = config.rows[i], row_bytes = config.row_bytes[i];
      Twin::require(i < 8 || (rows == 0 && row_bytes == 0), "there are eight tiles");
      Twin::require(rows <= 16 && row_bytes <= 64, "a tile has 16 rows of 64 bytes at most");
      Twin::require((rows == 0) == (row_bytes == 0), "a tile has both rows and bytes, or neither");
      if (i >= 8) continue;
      twin.tiles[i] = TwinTile();
      twin.tiles[i].rows = rows;
      twin.tiles[i].row_bytes = row_bytes;
    }
    twin.configured = true;
  }

  static void release() { Twin::of_this_thread() = Twin(); }

  template <int tile>
  static void zero() {
    std::memset(used<tile>().bytes, 0, sizeof(TwinTile::bytes));
  }

  template <int tile>
  static void load(const void* address, std::int64_t stride) {
    TwinTile& to = used<tile>();
    std::memset(to.bytes, 0, sizeof to.bytes);
    const auto* from = static_cast<const unsigned char*>(address);
    for (int r = 0; r < to.rows; ++r) {
      for (int i = 0; i < to.row_bytes; ++i) to.bytes[r][i] = from[r * stride + i];
    }
  }

  template <int tile>
  static void store(void* address, std::int64_t stride) {
    const TwinTile& from = used<tile>();
    auto* to = static_cast<unsigned char*>(address);
    for (int r = 0; r < from.rows; ++r) {
      for (int i = 0; i < from.row_bytes; ++i) to[r * stride + i] = from.bytes[r][i];
    }
  }

  template <int sum, int a, int b>
  static void multiply() {
    static_assert(sum != a && sum != b && a != b, "the three tiles must differ");
    TwinTile &sums = used<sum>(), &left = used<a>(), &right = used<b>();
    Twin::require(left.rows == sums.rows, "a must have as many rows as the sums");
    Twin::require(right.row_bytes == sums.row_bytes, "b must have as many columns as the sums");
    Twin::require(left.row_bytes == 4 * right.rows, "b must have a row for each pair of a");
    Twin::require(left.row_bytes % 4 == 0 && sums.row_bytes % 4 == 0, "rows must be whole pairs, and whole sums");
    // Columns that are not there are zeros in both, and come to nothing.
    float of_b[16][2][16];
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 16; ++n) {
        for (int i = 0; i < 2; ++i) of_b[k][i][n] = without_denormals(element(right, k, 2 * n + i));
      }
    }
    for (int m = 0; m < sums.rows; ++m) {
      float even[16] = {}, odd[16] = {}, total[16];
      for (int k = 0; k < right.rows; ++k) {
        const float first = without_denormals(element(left, m, 2 * k));
        const float second = without_denormals(element(left, m, 2 * k + 1));
        for (int n = 0; n < 16; ++n) even[n] = without_denormals(__builtin_fmaf(first, of_b[k][0][n], even[n]));
        for (int n = 0; n < 16; ++n) odd[n] = without_denormals(__builtin_fmaf(second, of_b[k][1][n], odd[n]));
      }
      std::memcpy(total, sums.bytes[m], sizeof total);
      for (int n = 0; n < 16; ++n) {
        total[n] = without_denormals(without_denormals(total[n]) + without_denormals(even[n] + odd[n]));
      }
      std::memcpy(sums.bytes[m], total, sums.row_bytes);
    }
  }

 private:
  template <int tile>
  static TwinTile& used() {
    static_assert(tile >= 0 && tile < 8, "there are eight tiles");
    Twin& twin = Twin::of_this_thread();
    Twin::require(twin.configured, "the tiles are used before they are configured");
    Twin::require(twin.tiles[tile].rows > 0, "a tile is used that has no rows");
    return twin.tiles[tile];
  }

  static float element(const TwinTile& tile, int row, int i) {
    bfloat16 value;
    std::memcpy(&value, tile.bytes[row] + 2 * i, sizeof value);
    return to_float(value);
  }
};

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
