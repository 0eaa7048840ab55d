#include "count_bits.h"

#include <algorithm>
#include <vector>

#include "bits.h"
#include "runtime/bind.h"
#include "runtime/parallel.h"

namespace py = pybind11;

namespace cad_fast {
namespace {

// Counting reads 4 bytes a word where packing reads 32, so a range is worth a thread only from more words on.
constexpr std::int64_t count_grain_words = 32768;

// A row is counted in blocks, so that one long row is shared by all threads as well as many short rows are.
void count_rows(const std::uint8_t* words, std::int64_t* counts, std::int64_t rows, std::int64_t row_words) {
  const auto kernel = CAD_FAST_DISPATCH(count_bits);
  const std::int64_t blocks = std::max<std::int64_t>(1, (row_words + count_grain_words - 1) / count_grain_words);
  const std::int64_t block_words = std::min(count_grain_words, std::max<std::int64_t>(1, row_words));

  std::vector<std::int64_t> partial(blocks > 1 ? rows * blocks : 0);
  std::int64_t* results = blocks > 1 ? partial.data() : counts;
  parallel_for(rows * blocks, count_grain_words / block_words, [=](std::int64_t begin, std::int64_t end) noexcept {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t first = i % blocks * block_words;
      const std::int64_t count = std::min(block_words, row_words - first);
      results[i] = kernel(words + 4 * (i / blocks * row_words + first), count);
    }
  });

  for (std::int64_t row = 0; blocks > 1 && row < rows; ++row) {
    counts[row] = 0;
    for (std::int64_t block = 0; block < blocks; ++block) counts[row] += partial[row * blocks + block];
  }
}

}  // namespace
}  // namespace cad_fast

CAD_FAST_BIND(count_bits, m) {
  m.def(
      "count_bits",
      [](std::uintptr_t words, std::uintptr_t counts, std::int64_t rows, std::int64_t row_words) {
        count_rows(pointer<const std::uint8_t>(words), pointer<std::int64_t>(counts), rows, row_words);
      },
      py::arg("words"), py::arg("counts"), py::arg("rows"), py::arg("row_words"),
      py::call_guard<py::gil_scoped_release>(), "Bits set in each row of 32-bit words [rows, row_words], as int64 [rows].");
}
