#pragma once

#include "runtime/kernel.h"

namespace cad_fast {

// Packs bytes [rows, n], nonzero meaning set, into words [rows, words_for(n)]; of these only the words [begin, end),
// counted through all rows. Neither pointer need be aligned. The bits behind a row's last element become zero.
using PackBits = void(const std::uint8_t* bytes, std::uint8_t* words, std::int64_t n, std::int64_t begin,
                      std::int64_t end) noexcept;

CAD_FAST_DECLARE_KERNEL(pack_bits, PackBits)

}  // namespace cad_fast
