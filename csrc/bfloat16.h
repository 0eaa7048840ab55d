// bfloat16 as its 16 bits, with the same few functions for float, so that a kernel may be written for both.
#pragma once

#include <cstdint>
#include <cstring>

namespace cad_fast {

using bfloat16 = std::uint16_t;

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

[[maybe_unused]] float to_float(float value) { return value; }
[[maybe_unused]] float to_float(bfloat16 value) { return float_of(std::uint32_t{value} << 16); }

// To the nearest, ties to even; a NaN stays one.
[[maybe_unused]] bfloat16 to_bfloat16(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<bfloat16>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : nearest);
}

// The product, rounded to the type of the first operand; the factor is one that the type can hold.
[[maybe_unused]] float scale(float value, float factor) { return value * factor; }
[[maybe_unused]] bfloat16 scale(bfloat16 value, float factor) { return to_bfloat16(to_float(value) * factor); }

}  // namespace
}  // namespace cad_fast
