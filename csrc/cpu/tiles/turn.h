// Between rows, as tensors have them, and what the tile unit multiplies and gives: pairs of elements that lie along the sum,
// and sums whose rows are outputs.
#pragma once

#include "cpu/transpose.h"
#include "cpu/tiles/multiply.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

// Of 32 elements, or of 16 floats, the first `count`.
[[maybe_unused]] __mmask32 first_elements(std::int64_t count) {
  return static_cast<__mmask32>(count < 32 ? (std::uint32_t{1} << count) - 1 : ~0u);
}

// Rows of `count` elements, `stride` elements apart, to target [padded_depth(count) / 2][width][2]; zero where there is none.
[[maybe_unused]] void pack_pairs(const bfloat16* rows, std::int64_t stride, std::int64_t row_count, std::int64_t count,
                                 std::int64_t width, bfloat16* target) {
  for (std::int64_t element = 0; element < count; element += tile_depth) {
    const __mmask32 there = first_elements(count - element);
    for (std::int64_t first = 0; first < width; first += tile_side) {
      __m512i row[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) {
        const __mmask32 own = first + r < row_count ? there : 0;
        row[r] = _mm512_maskz_loadu_epi16(own, rows + (first + r) * stride + element);
      }
      transpose_sixteen(row);
#pragma GCC unroll 16
      for (int c = 0; c < 16; ++c) {
        _mm512_storeu_si512(target + ((element / 2 + c) * width + first) * 2, row[c]);
      }
    }
  }
}

// Rows of elements side by side: two of the sum become 32 pairs, the first 16 of them in outputs_of_pairs' order, and then
// the others. So the pairs need one instruction each.
[[maybe_unused]] void interleave(__m512i even, __m512i odd, bfloat16* target) {
  _mm512_storeu_si512(target, _mm512_unpacklo_epi16(even, odd));
  _mm512_storeu_si512(target + 32, _mm512_unpackhi_epi16(even, odd));
}

// Where `interleave` puts output o of 32: bits 4, 3, 2 of o become bits 3, 2, 4.
constexpr std::int32_t place_of_output(std::int32_t o) { return (o & 3) | (o & 24) >> 1 | (o & 4) << 2; }

// Sums of outputs [32][rows, 32 apart] to y, in rows `outer` apart, of which so many outputs are written.
[[maybe_unused]] void store_turned(const float* sums, const float* bias, std::int64_t rows, std::int64_t outputs,
                                   bfloat16* y, std::int64_t outer) {
  const __mmask32 there = first_elements(outputs);
  const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                         20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (std::int64_t first = 0; first < rows; first += tile_side) {
    __m512i row[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const float* own = sums + 2 * i * panel_width + first;
      const Vec even = add(load(own), broadcast(bias[2 * i]));
      const Vec odd = add(load(own + panel_width), broadcast(bias[2 * i + 1]));
      const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
      row[i] = _mm512_permutexvar_epi16(pairs, both);
    }
    transpose_sixteen(row);
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      if (first + r < rows) _mm512_mask_storeu_epi16(y + (first + r) * outer, there, row[r]);
    }
  }
}

// Sums [rows][32 outputs in the order of `interleave`] to y.
[[maybe_unused]] void store_rows(const float* sums, const float* bias, std::int64_t rows, std::int64_t outputs, bfloat16* y,
                                 std::int64_t outer) {
  alignas(64) std::int32_t places[32];
  for (int o = 0; o < 32; ++o) places[o] = place_of_output(o);
  const __m512i low = _mm512_load_si512(places), high = _mm512_load_si512(places + 16);
  for (std::int64_t r = 0; r < rows; ++r, sums += panel_width, y += outer) {
    const Vec first = load(sums), second = load(sums + lanes);
    const Vec a = add(_mm512_permutex2var_ps(first, low, second), load(bias));
    const Vec b = add(_mm512_permutex2var_ps(first, high, second), load(bias + lanes));
    const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
    _mm512_mask_storeu_epi16(y, first_elements(outputs), both);
  }
}

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
