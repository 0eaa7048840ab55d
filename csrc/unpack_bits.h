#pragma once

#include "runtime/kernel.h"

namespace cad_fast {

// Unpacks words [rows, words_for(n)] into bytes [rows, n] of 0 and 1; of the words only [begin, end), counted through
// all rows. Neither pointer need be aligned. The bits behind a row's last element are ignored.
using UnpackBits = void(const std::uint8_t* words, std::uint8_t* bytes, std::int64_t n, std::int64_t begin,
                        std::int64_t end) noexcept;

CAD_FAST_DECLARE_KERNEL(unpack_bits, UnpackBits)

}  // namespace cad_fast
