#pragma once

#include "runtime/kernel.h"

namespace cad_fast {

// The number of bits set in `count` words. The pointer need not be aligned.
using CountBits = std::int64_t(const std::uint8_t* words, std::int64_t count) noexcept;

CAD_FAST_DECLARE_KERNEL(count_bits, CountBits)

}  // namespace cad_fast
