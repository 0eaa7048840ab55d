// The float vectors of each instruction set under one set of names, and conversions to and from bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "bfloat16.h"
#include "runtime/kernel.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

[[maybe_unused]] void store_as(float v, float* address) { *address = v; }
[[maybe_unused]] void store_as(float v, bfloat16* address) { *address = to_bfloat16(v); }

#if defined(__AVX512F__)

using Vec = __m512;
constexpr int lanes = 16;
constexpr int tile_rows = 14;  // times two vectors, and two of the weight and one of x: 31 of the 32 registers

Vec zero() { return _mm512_setzero_ps(); }
Vec load(const float* address) { return _mm512_loadu_ps(address); }
[[maybe_unused]] Vec load(const bfloat16* address) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(address));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
void store(float* address, Vec v) { _mm512_storeu_ps(address, v); }
Vec broadcast(float v) { return _mm512_set1_ps(v); }
Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
[[maybe_unused]] Vec multiply(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
[[maybe_unused]] float sum_of(Vec v) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_maskz_extractf32x8_ps(0xff, v, 1));
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

// Lane i of a where bit i is not set, of b where it is.
[[maybe_unused]] Vec select(std::uint32_t bits, Vec a, Vec b) {
  return _mm512_mask_mov_ps(a, static_cast<__mmask16>(bits), b);
}
[[maybe_unused]] Vec zero_where(std::uint32_t bits, Vec v) {
  return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), v, zero());
}

#elif defined(__AVX2__)

using Vec = __m256;
constexpr int lanes = 8;
constexpr int tile_rows = 6;  // times two vectors, and two of the weight and one of x: 15 of the 16 registers

Vec zero() { return _mm256_setzero_ps(); }
Vec load(const float* address) { return _mm256_loadu_ps(address); }
[[maybe_unused]] Vec load(const bfloat16* address) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(address));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
void store(float* address, Vec v) { _mm256_storeu_ps(address, v); }
Vec broadcast(float v) { return _mm256_set1_ps(v); }
Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
[[maybe_unused]] Vec multiply(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
[[maybe_unused]] float sum_of(Vec v) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

[[maybe_unused]] Vec lanes_set(std::uint32_t bits) {
  const __m256i bit_of_lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i spread = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), bit_of_lane);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(spread, bit_of_lane));
}
[[maybe_unused]] Vec select(std::uint32_t bits, Vec a, Vec b) { return _mm256_blendv_ps(a, b, lanes_set(bits)); }
[[maybe_unused]] Vec zero_where(std::uint32_t bits, Vec v) { return _mm256_andnot_ps(lanes_set(bits), v); }

#else

// Four floats that compilers keep in whatever vector register the architecture has.
struct Vec {
  float lane[4];
};
constexpr int lanes = 4;
constexpr int tile_rows = 4;

template <class Function>
Vec lanewise(Function function) {
  return {{function(0), function(1), function(2), function(3)}};
}

Vec load(const float* address) {
  return lanewise([=](int i) { return address[i]; });
}
[[maybe_unused]] Vec load(const bfloat16* address) {
  return lanewise([=](int i) { return to_float(address[i]); });
}
void store(float* address, Vec v) { std::memcpy(address, v.lane, sizeof v.lane); }
Vec broadcast(float v) { return {{v, v, v, v}}; }
Vec zero() { return broadcast(0); }
Vec add(Vec a, Vec b) {
  return lanewise([=](int i) { return a.lane[i] + b.lane[i]; });
}
[[maybe_unused]] Vec multiply(Vec a, Vec b) {
  return lanewise([=](int i) { return a.lane[i] * b.lane[i]; });
}
Vec multiply_add(Vec a, Vec b, Vec c) {
  return lanewise([=](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
[[maybe_unused]] float sum_of(Vec v) { return (v.lane[0] + v.lane[1]) + (v.lane[2] + v.lane[3]); }
[[maybe_unused]] Vec select(std::uint32_t bits, Vec a, Vec b) {
  return lanewise([=](int i) { return (bits >> i) & 1u ? b.lane[i] : a.lane[i]; });
}
[[maybe_unused]] Vec zero_where(std::uint32_t bits, Vec v) { return select(bits, v, zero()); }

#endif

constexpr std::uint32_t all_lanes = (1u << lanes) - 1;

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
