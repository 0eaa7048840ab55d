// A block of the weight as the tile unit takes it: rows of outputs, or, of a transposed weight, pairs of rows. Both end in
// zeros up to a whole step of the sum.
#pragma once

#include "cpu/tiles/turn.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

struct TileBlock {
  std::int64_t output, outputs;    // of a panel
  std::int64_t element, elements;  // along the sum
  bool first_panel;                // of those that a thread does one after the other
};

// target [outputs][elements], rows tile_stride bytes apart. load(o, i, there) gives elements [i, i + 32) of output o, zero
// where they are not there.
template <class Load>
void write_rows(const TileBlock& block, bfloat16* target, Load load) {
  for (std::int64_t o = 0; o < block.outputs; ++o, target += tile_stride / 2) {
    std::int64_t i = 0;
    for (; i + 32 <= block.elements; i += 32) _mm512_storeu_si512(target + i, load(o, i, ~0u));
    if (i < block.elements) _mm512_storeu_si512(target + i, load(o, i, first_elements(block.elements - i)));
  }
}

// target [elements / 2][32][2], see `interleave`. load(i, there) gives the outputs of element i.
template <class Load>
void write_columns(const TileBlock& block, bfloat16* target, Load load) {
  const __mmask32 there = first_elements(block.outputs);
  const auto row = [&](std::int64_t i) __attribute__((always_inline)) {
    return i < block.elements ? load(i, there) : _mm512_setzero_si512();
  };
  const std::int64_t padded = padded_depth(block.elements);
  for (std::int64_t i = 0; i < padded; i += 2, target += 2 * panel_width) interleave(row(i), row(i + 1), target);
}

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
