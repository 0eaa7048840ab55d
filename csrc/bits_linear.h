#pragma once

#include "bits.h"
#include "runtime/kernel.h"

namespace cad_fast {

// Words of a cache line: what a thread takes of each row at a time where it adds up columns.
constexpr std::int64_t line_words = 16;

struct BitsLinear {
  const std::uint8_t* words;  // [rows, row_words], 32 bits each: the matrix B [rows, 32 * row_words] of zeros and ones
  std::int64_t rows, row_words;
  const double* x;  // [targets, 32 * row_words], or [targets, rows] if transposed
  double* y;        // [targets, rows], or [targets, 32 * row_words] if transposed
  std::int64_t targets;
  bool transposed;
};

// y = x B^T for the rows [begin, end) of B; or, transposed, y = x B for its columns, counted in cache lines of words.
using BitsLinearKernel = void(const BitsLinear& task, std::int64_t begin, std::int64_t end) noexcept;

CAD_FAST_DECLARE_KERNEL(bits_linear, BitsLinearKernel)

}  // namespace cad_fast
