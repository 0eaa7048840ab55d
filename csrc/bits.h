// Rows of packed bits: bit i of word j of a row is its element 32 * j + i. Shared by the kernels of the bit ops.
#pragma once

#include <cstdint>
#include <cstring>

namespace cad_fast {

constexpr std::int64_t word_bits = 32;

// Words that a parallel range has at least: 64 KiB of bytes as a mask, too little to be worth a second thread.
constexpr std::int64_t grain_words = 2048;

constexpr std::int64_t ceil_div(std::int64_t n, std::int64_t d) { return (n + d - 1) / d; }

constexpr std::int64_t words_for(std::int64_t n) { return ceil_div(n, word_bits); }

// Internal linkage: these are compiled once per instruction set, and the linker must not merge the copies.
namespace {

[[maybe_unused]] std::uint32_t load_word(const std::uint8_t* address) {
  std::uint32_t word;
  std::memcpy(&word, address, sizeof word);
  return word;
}

[[maybe_unused]] void store_word(std::uint8_t* address, std::uint32_t word) {
  std::memcpy(address, &word, sizeof word);
}

// Calls part(row, first, last) for the words [first, last) of each row that [begin, end) of all words covers.
template <class Part>
void for_each_row(std::int64_t begin, std::int64_t end, std::int64_t words, Part part) {
  std::int64_t row = begin / words;
  std::int64_t first = begin % words;
  for (std::int64_t left = end - begin; left > 0; ++row, first = 0) {
    const std::int64_t last = words - first < left ? words : first + left;
    part(row, first, last);
    left -= last - first;
  }
}

}  // namespace
}  // namespace cad_fast
