// bfloat16 as its 16 bits, with the same few functions for float, so that a kernel may be written for both.
#pragma once

#include <cstdint>
#include <cstring>

namespace cad_fast {

struct Bfloat16 {
  std::uint16_t bits;
};

// Internal linkage: these are compiled once per instruction set, and the linker must not merge the copies.
namespace {

[[maybe_unused]] std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

[[maybe_unused]] float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

[[maybe_unused]] float widen(float value) { return value; }
[[maybe_unused]] float widen(Bfloat16 value) { return float_of(static_cast<std::uint32_t>(value.bits) << 16); }

// To the nearest, ties to even; a NaN stays one.
[[maybe_unused]] Bfloat16 round_to_bfloat16(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet = (bits >> 16) | 0x40u;
  return {static_cast<std::uint16_t>(value != value ? quiet : rounded)};
}

// The product, rounded to the type of the first operand; the factor is one that the type can hold.
[[maybe_unused]] float scale(float value, float factor) { return value * factor; }
[[maybe_unused]] Bfloat16 scale(Bfloat16 value, float factor) { return round_to_bfloat16(widen(value) * factor); }

// `set` where the mask is all ones, `unset` where it is zero.
[[maybe_unused]] float choose(std::uint32_t mask, float set, float unset) {
  return float_of((bits_of(set) & mask) | (bits_of(unset) & ~mask));
}
[[maybe_unused]] Bfloat16 choose(std::uint32_t mask, Bfloat16 set, Bfloat16 unset) {
  return {static_cast<std::uint16_t>((set.bits & mask) | (unset.bits & ~mask))};
}

template <class Out>
Out convert(float value) {
  return value;
}
template <class Out>
Out convert(Bfloat16 value) {
  if constexpr (sizeof(Out) == sizeof(Bfloat16))
    return value;
  else
    return widen(value);
}

}  // namespace
}  // namespace cad_fast
