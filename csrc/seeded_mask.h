#pragma once

#include "runtime/kernel.h"

namespace cad_fast {

// Writes `count` words of a random mask from word `begin` of its row on: bit i of word j is whether draw i % 4 of block
// 8 * j + i / 4 is at most `last`. Blocks are Philox4x32-10 with key `seed` and counter (block, row), 64 bits each, the
// low half first. The pointer need not be aligned.
using SeededMask = void(std::uint64_t seed, std::uint64_t row, std::int64_t begin, std::int64_t count,
                        std::uint32_t last, std::uint8_t* words) noexcept;

CAD_FAST_DECLARE_KERNEL(seeded_mask, SeededMask)

}  // namespace cad_fast
