// How many rows and bytes each of the eight tiles has, as `ldtilecfg` reads it.
#pragma once

#include <cstdint>

#include "runtime/kernel.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;  // the only one so far: eight tiles of 16 rows of 64 bytes at most
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
