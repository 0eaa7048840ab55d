// Panels: 32 outputs of the weight, side by side for each step of the sum, so that a register tile reads them in order.
//
// A step is one element of x and 32 floats of the panel; where the CPU multiplies pairs of bfloat16 and adds up in
// float32 (avx512bf16), it is two elements and 32 pairs. Elsewhere bfloat16 becomes float when it is packed.
#pragma once

#include "cpu/simd.h"
#include "cpu/transpose.h"
#include "linear.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

#if defined(__AVX512F__)

// Compilers take a mask through a general register, which occupies the ports of the multiplications for longer.
[[maybe_unused]] __mmask16 load_mask(const std::uint8_t* address) {
  using Stored [[gnu::may_alias]] = __mmask16;
  __mmask16 mask;
  asm("kmovw %1, %0" : "=k"(mask) : "m"(*reinterpret_cast<const Stored*>(address)));
  return mask;
}

#endif

// Steps of float32, for a weight of type Input.
template <class Input>
struct Floats {
  using Element = float;
  using Bits = std::uint32_t;  // of one step, for 32 outputs
  static constexpr std::int64_t step_size = 1;

  static Vec load_step(const float* address) { return load(address); }
  static void store_step(float* address, Vec w) { store(address, w); }
  static Vec broadcast_step(const float* address) { return broadcast(*address); }
  static Vec multiply_add_step(Vec x, Vec w, Vec sum) { return multiply_add(x, w, sum); }
  static Vec multiply_add_broadcast(const float* x, Vec w, Vec sum) { return multiply_add(broadcast(*x), w, sum); }

  // What an element of the panel becomes, rounded like the weight.
  static float scaled(float w, float factor) {
    if (factor == 0) return 0;
    Input product;
    store_as(w * factor, &product);
    return to_float(product);
  }

  // Copies a step; the outputs whose bit is set are multiplied by the factor, and zero if that is zero.
  static void edit_step(const float* from, float* to, Bits bits, float factor) {
    if (factor == 0) {
      for (int i = 0; i < panel_width; i += lanes) store(to + i, zero_where((bits >> i) & all_lanes, load(from + i)));
    } else {
      for (int i = 0; i < panel_width; ++i) to[i] = (bits >> i) & 1u ? scaled(from[i], factor) : from[i];
    }
  }

  static Bits interleave(std::uint32_t bits, std::uint32_t) { return bits; }

  // From words along the sum, one for each of 32 outputs.
  static void turn(const std::uint32_t* words, Bits* bits) { transpose_bits(words, bits); }

#if defined(__AVX512F__)
  // A vector of a step, zero where its bit is not set.
  static Vec load_kept(const float* address, const std::uint8_t* bits) {
    return _mm512_maskz_loadu_ps(load_mask(bits), address);
  }
#endif
};

#if defined(__AVX512BF16__)

struct Pairs {
  using Element = bfloat16;
  using Bits = std::uint64_t;
  static constexpr std::int64_t step_size = 2;

  static Vec load_step(const bfloat16* address) { return _mm512_loadu_ps(address); }
  static void store_step(bfloat16* address, Vec w) { _mm512_storeu_ps(address, w); }
  static Vec broadcast_step(const bfloat16* address) {
    float pair;
    std::memcpy(&pair, address, sizeof pair);
    return broadcast(pair);
  }
  // Compilers load and broadcast apart, which takes as long as the multiplication itself.
  static Vec multiply_add_broadcast(const bfloat16* x, Vec w, Vec sum) {
    using Pair [[gnu::may_alias]] = std::uint32_t;
    asm("vdpbf16ps %1%{1to16%}, %2, %0" : "+v"(sum) : "m"(*reinterpret_cast<const Pair*>(x)), "v"(w));
    return sum;
  }
  static Vec multiply_add_step(Vec x, Vec w, Vec sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }

  static void edit_step(const bfloat16* from, bfloat16* to, std::uint64_t bits, float factor) {
    for (int i = 0; i < 2; ++i, bits >>= 32) {
      const __m512i w = _mm512_loadu_si512(from + 32 * i);
      const __mmask32 own = static_cast<__mmask32>(bits);
      const __m512i instead = factor == 0 ? _mm512_setzero_si512() : scaled(w, factor);
      _mm512_storeu_si512(to + 32 * i, _mm512_mask_mov_epi16(w, own, instead));
    }
  }

  static __m512i scaled(__m512i w, float factor) {
    const Vec f = broadcast(factor);
    const Vec low = multiply(_mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), f);
    const Vec high = multiply(_mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(-0x10000))), f);
    const __m512i low_half = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(low)));
    const __m512i high_half = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(high)));
    return _mm512_or_si512(low_half, _mm512_slli_epi32(high_half, 16));
  }
  static bfloat16 scaled(bfloat16 w, float factor) { return factor == 0 ? 0 : to_bfloat16(to_float(w) * factor); }
  static Bits interleave(std::uint32_t even, std::uint32_t odd) {
    return _pdep_u64(even, 0x5555555555555555) | _pdep_u64(odd, 0xaaaaaaaaaaaaaaaa);
  }
  static void turn(const std::uint32_t* words, Bits* bits) { transpose_pairs(words, bits); }
  static Vec load_kept(const bfloat16* address, const std::uint8_t* bits) {
    using Stored [[gnu::may_alias]] = __mmask32;
    __mmask32 own;
    asm("kmovd %1, %0" : "=k"(own) : "m"(*reinterpret_cast<const Stored*>(bits)));
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(own, address));
  }
};

#endif

template <class Input>
struct StepsOf {
  using Type = Floats<Input>;
};
#if defined(__AVX512BF16__)
template <>
struct StepsOf<bfloat16> {
  using Type = Pairs;
};
#endif

// A factor as the weight's type has it.
[[maybe_unused]] float factor_as(float factor, const float*) { return factor; }
[[maybe_unused]] float factor_as(float factor, const bfloat16*) { return to_float(to_bfloat16(factor)); }

// A range of the weight: outputs that make a panel at most, and elements along the sum.
struct Part {
  std::int64_t output;
  std::int64_t outputs;
  std::int64_t element;
  std::int64_t elements;
};

// Words that hold two bfloat16 each, [pairs][32], to floats [2 * pairs][32]. The pairs lie in the second half of the
// target: each is read before it is overwritten.
[[maybe_unused]] void widen_pairs(float* target, std::int64_t pairs) {
  for (std::int64_t j = 0; j < pairs; ++j) {
    for (std::int64_t i = 0; i < 32; ++i) {
      std::uint32_t pair;
      std::memcpy(&pair, target + 32 * (pairs + j) + i, sizeof pair);
      const std::uint32_t low = pair << 16, high = pair & 0xffff0000u;
      std::memcpy(target + 64 * j + i, &low, sizeof low);
      std::memcpy(target + 64 * j + 32 + i, &high, sizeof high);
    }
  }
}

// From rows along the sum. The words of float rows are steps, and so are those of bfloat16 rows if steps are pairs.
template <class Steps, class Input>
void pack_rows(const Input* weight, std::int64_t inner, Part part, typename Steps::Element* target) {
  const auto* source = reinterpret_cast<const std::uint8_t*>(weight + part.output * inner + part.element);
  constexpr std::int64_t size = sizeof(Input);
  const bool widen = sizeof(Input) < 4 && Steps::step_size == 1;
  const std::int64_t pairs = (part.elements + 1) / 2;
  auto* words = reinterpret_cast<std::uint32_t*>(target) + (widen ? 32 * pairs : 0);
  transpose_words(source, inner * size, part.outputs, part.elements * size, words);
  if (widen) widen_pairs(reinterpret_cast<float*>(target), pairs);
}

// From rows along the outputs (a transposed weight).
template <class Steps, class Input>
void pack_columns(const Input* weight, std::int64_t outer, Part part, typename Steps::Element* target) {
  constexpr std::int64_t size = Steps::step_size;
  const std::int64_t steps = ceil_div(part.elements, size);
  if (part.outputs < panel_width || part.elements % size != 0) {
    std::memset(target, 0, static_cast<std::size_t>(steps * size * panel_width) * sizeof *target);
  }
  for (std::int64_t i = 0; i < part.elements; ++i) {
    const Input* row = weight + (part.element + i) * outer + part.output;
    auto* to = target + i / size * size * panel_width + i % size;
    for (std::int64_t o = 0; o < part.outputs; ++o) {
      if constexpr (size == 2) {
        to[2 * o] = row[o];
      } else {
        to[o] = to_float(row[o]);
      }
    }
  }
}

// Copies rows of x into a tile: `stride` elements apart, and zero up to a whole step.
template <class Steps, class Input>
void pack_tile(const Input* x, std::int64_t inner, std::int64_t rows, std::int64_t count,
               typename Steps::Element* target, std::int64_t stride) {
  if (count == 0) return;  // x may be null then
  for (std::int64_t r = 0; r < rows; ++r, x += inner, target += stride) {
    if constexpr (sizeof(Input) == sizeof *target) {
      std::memcpy(target, x, static_cast<std::size_t>(count) * sizeof *target);
    } else {
      for (std::int64_t i = 0; i < count; ++i) target[i] = to_float(x[i]);
    }
    if (count % Steps::step_size != 0) target[count] = 0;
  }
}

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
