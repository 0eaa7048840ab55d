// The tile unit: the instructions of AMX for bfloat16, under one set of names. The tests put tests/tiles/twin.h in the place
// of this file, the same in plain C++.
//
// Not the compiler's own functions: those of GCC 12 do not say that a load reads memory, so that it might come before the
// stores whose values it needs.
#pragma once

#include <cstdint>

#include "cpu/tiles/config.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

struct TileUnit {
  // Sets all tiles to zero.
  static void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config) : "memory"); }

  // Gives the tiles up: a thread that holds them is slower to switch away from.
  static void release() { asm volatile("tilerelease" : : : "memory"); }

  template <int tile>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(tile) : "memory");
  }

  // Rows of the tile lie stride bytes apart in memory.
  template <int tile>
  static void load(const void* address, std::int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(address), "r"(stride), "i"(tile) : "memory");
  }

  template <int tile>
  static void store(void* address, std::int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(address), "r"(stride), "i"(tile) : "memory");
  }

  // sum[m][n] += a[m][2 k] b[k][2 n] + a[m][2 k + 1] b[k][2 n + 1], for all k.
  template <int sum, int a, int b>
  static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b) : "memory");
  }
};

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
