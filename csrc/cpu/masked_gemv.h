// One row per variant: dot products with the rows of the weight as they lie, each read once for several variants.
#pragma once

#include "cpu/simd.h"
#include "masked_linear.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

// So many rows of the weight share a load of x, and so many variants a load of the weight; the sums are in registers.
constexpr int gemv_outputs = lanes < 16 ? 2 : 4;
constexpr int gemv_variants = 4;

// 32 elements of the sum, all of them in memory, added up in vectors.
template <class Input>
struct Chunk {
  static constexpr int vectors = 32 / lanes;
  static Vec load_at(const Input* address, int v) { return load(address + v * lanes); }

  // With a factor (not zero): where bits are set, w * factor.
  static Vec edited(std::uint32_t word, int v, Vec w, float factor) {
    const std::uint32_t bits = (word >> (v * lanes)) & all_lanes;
    if (factor == 0) return zero_where(bits, w);
    Vec product = multiply(w, broadcast(factor));
    if constexpr (sizeof(Input) < 4) {
      float rounded[lanes];
      store(rounded, product);
      for (float& value : rounded) value = to_float(to_bfloat16(value));
      product = load(rounded);
    }
    return select(bits, w, product);
  }
  static Vec multiply_add_at(Vec x, Vec w, Vec sum) { return multiply_add(x, w, sum); }
};

#if defined(__AVX512BF16__)

template <>
struct Chunk<bfloat16> {
  static constexpr int vectors = 1;
  static Vec load_at(const bfloat16* address, int) { return _mm512_loadu_ps(address); }
  static Vec edited(std::uint32_t word, int, Vec w, float factor) {
    const __m512i bits = _mm512_castps_si512(w);
    const __m512i instead = factor == 0 ? _mm512_setzero_si512() : Pairs::scaled(bits, factor);
    return _mm512_castsi512_ps(_mm512_mask_mov_epi16(bits, word, instead));
  }
  static Vec multiply_add_at(Vec x, Vec w, Vec sum) { return Pairs::multiply_add_step(x, w, sum); }
};

#endif

template <class Input>
struct Gemv {
  const Input* x;              // of the first variant
  const Input* weight;         // of the first output
  const std::uint32_t* words;  // of both
  const float* factors;        // or null
  std::int64_t inner;
  std::int64_t variant_words;
};

// result[o][v] for so many outputs and variants.
template <class Input, int outputs, int variants, bool scale>
void dot_products(const Gemv<Input>& task, float* result) {
  using Part = Chunk<Input>;
  const std::int64_t row_words = ceil_div(task.inner, 32);
  float factors[variants] = {};
  for (int v = 0; v < variants && scale; ++v) factors[v] = factor_as(task.factors[v], task.x);
  Vec sum[outputs][variants];
#pragma GCC unroll 4
  for (int o = 0; o < outputs; ++o) {
#pragma GCC unroll 8
    for (int v = 0; v < variants; ++v) sum[o][v] = zero();
  }
  const auto add_chunk = [&](std::int64_t j, std::uint32_t there, const Input* x, std::int64_t x_stride,
                             const Input* weight, std::int64_t weight_stride) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int i = 0; i < Part::vectors; ++i) {
      Vec w[outputs];
#pragma GCC unroll 4
      for (int o = 0; o < outputs; ++o) w[o] = Part::load_at(weight + o * weight_stride, i);
#pragma GCC unroll 8
      for (int v = 0; v < variants; ++v) {
        const Vec own = Part::load_at(x + v * x_stride, i);
#pragma GCC unroll 4
        for (int o = 0; o < outputs; ++o) {
          const std::uint32_t word = task.words[v * task.variant_words + o * row_words + j] & there;
          sum[o][v] = Part::multiply_add_at(own, Part::edited(word, i, w[o], scale ? factors[v] : 0), sum[o][v]);
        }
      }
    }
  };
  const std::int64_t whole = task.inner / 32;
  for (std::int64_t j = 0; j < whole; ++j) {
    add_chunk(j, ~0u, task.x + 32 * j, task.inner, task.weight + 32 * j, task.inner);
  }
  if (const std::int64_t left = task.inner % 32; left > 0) {
    Input x[variants][32] = {}, weight[outputs][32] = {};
    const std::size_t size = static_cast<std::size_t>(left) * sizeof(Input);
    for (int v = 0; v < variants; ++v) std::memcpy(x[v], task.x + v * task.inner + 32 * whole, size);
    for (int o = 0; o < outputs; ++o) std::memcpy(weight[o], task.weight + o * task.inner + 32 * whole, size);
    // Behind the last element zeros stand for weights, which an infinite factor must not reach.
    add_chunk(whole, (1u << left) - 1, x[0], 32, weight[0], 32);
  }
#pragma GCC unroll 4
  for (int o = 0; o < outputs; ++o) {
#pragma GCC unroll 8
    for (int v = 0; v < variants; ++v) result[o * gemv_variants + v] = sum_of(sum[o][v]);
  }
}

template <class Input, int outputs, bool scale, int variants = gemv_variants>
void dot_products_of(int count, const Gemv<Input>& task, float* result) {
  if (count == variants) return dot_products<Input, outputs, variants, scale>(task, result);
  if constexpr (variants > 1) dot_products_of<Input, outputs, scale, variants - 1>(count, task, result);
}

template <class Input>
void gemv_block(const MaskedLinear& task, std::int64_t variant, int variants, std::int64_t output, int outputs) {
  const std::int64_t row_words = ceil_div(task.inner, 32);
  Gemv<Input> part;
  part.x = static_cast<const Input*>(task.x) + variant * task.inner;
  part.weight = static_cast<const Input*>(task.weight) + output * task.inner;
  part.words = task.words + (variant * task.outer + output) * row_words;
  part.factors = task.factors == nullptr ? nullptr : task.factors + variant;
  part.inner = task.inner;
  part.variant_words = task.outer * row_words;
  float result[gemv_outputs][gemv_variants];
  if (part.factors == nullptr && outputs == gemv_outputs) {
    dot_products_of<Input, gemv_outputs, false>(variants, part, result[0]);
  } else {
    for (int o = 0; o < outputs; ++o, part.weight += part.inner, part.words += row_words) {
      if (part.factors == nullptr) {
        dot_products_of<Input, 1, false>(variants, part, result[o]);
      } else {
        dot_products_of<Input, 1, true>(variants, part, result[o]);
      }
    }
  }
  const auto* bias = static_cast<const Input*>(task.bias);
  for (int v = 0; v < variants; ++v) {
    for (int o = 0; o < outputs; ++o) {
      const float y = bias == nullptr ? result[o][v] : result[o][v] + to_float(bias[output + o]);
      store_as(y, static_cast<Input*>(task.y) + (variant + v) * task.outer + output + o);
    }
  }
}

// The units [begin, end) as in Product::run: 32 outputs each, for a chunk of the variants.
template <class Input>
void masked_gemv(const MaskedLinear& task, std::int64_t begin, std::int64_t end) {
  for (std::int64_t unit = begin; unit < end; ++unit) {
    const std::int64_t chunk = unit / task.panels();
    const std::int64_t first = unit % task.panels() * panel_width;
    const std::int64_t last = first + panel_width < task.outer ? first + panel_width : task.outer;
    for (std::int64_t output = first; output < last; output += gemv_outputs) {
      const int outputs = last - output < gemv_outputs ? static_cast<int>(last - output) : gemv_outputs;
      const std::int64_t end_row = task.first_row(chunk + 1);
      for (std::int64_t variant = task.first_row(chunk); variant < end_row; variant += gemv_variants) {
        const std::int64_t left = end_row - variant;
        const int variants = left < gemv_variants ? static_cast<int>(left) : gemv_variants;
        gemv_block<Input>(task, variant, variants, output, outputs);
      }
    }
  }
}

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
