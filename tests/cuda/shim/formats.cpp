// The 16-bit formats that the kernels compute in.
#include "simt.h"

#include <algorithm>

namespace simt {

// The functions of one translation unit only: the compiler may not use those of the host for the device's formats.
std::uint16_t bfloat16_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return 0x7fff;
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

float float_of_bfloat16(std::uint16_t bits) {
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

float float_of_half(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float size;
  if (exponent == 31) {
    size = fraction == 0 ? INFINITY : NAN;
  } else {
    size = std::ldexp(static_cast<float>(exponent == 0 ? fraction : fraction + 1024), std::max(exponent, 1) - 25);
  }
  return bits >> 15 ? -size : size;
}

std::uint16_t half_of(float value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return 0x7fff;
  const float size = std::fabs(value);
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size == 0.0f) return sign;
  int exponent = 0;
  std::frexp(size, &exponent);
  exponent = std::max(exponent - 11, -24);  // of the last bit
  const long steps = std::lrint(std::ldexp(size, -exponent));  // to the nearest, ties to even
  return sign | static_cast<std::uint16_t>(steps + (exponent + 24L) * 1024);
}

}  // namespace simt

extern "C" {

// The formats that the kernels compute in, to be compared with someone else's.
void simt_convert(const float* from, std::uint16_t* half, std::uint16_t* bfloat16, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    half[i] = simt::half_of(from[i]);
    bfloat16[i] = simt::bfloat16_of(from[i]);
  }
}
}
