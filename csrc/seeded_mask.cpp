#include "seeded_mask.h"

#include "bits.h"
#include "runtime/bind.h"
#include "runtime/parallel.h"

namespace py = pybind11;

namespace cad_fast {
namespace {

// A word takes some hundred times as long to draw as to copy.
constexpr std::int64_t draw_grain_words = 512;

void draw_rows(std::uint64_t seed, std::uint64_t first, std::int64_t rows, std::int64_t begin, std::int64_t end,
               std::uint64_t threshold, std::uint8_t* words) {
  const auto kernel = CAD_FAST_DISPATCH(seeded_mask);
  const std::int64_t row_words = end - begin;
  parallel_for(rows * row_words, draw_grain_words, [=](std::int64_t range_begin, std::int64_t range_end) noexcept {
    // No draw is below 0, and the kernel compares with the largest draw that counts.
    if (threshold == 0) {
      std::memset(words + 4 * range_begin, 0, 4 * (range_end - range_begin));
      return;
    }
    for_each_row(range_begin, range_end, row_words, [=](std::int64_t row, std::int64_t from, std::int64_t to) {
      kernel(seed, first + row, begin + from, to - from, static_cast<std::uint32_t>(threshold - 1),
             words + 4 * (row * row_words + from));
    });
  });
}

}  // namespace
}  // namespace cad_fast

CAD_FAST_BIND(seeded_mask, m) {
  m.def(
      "seeded_mask",
      [](std::uint64_t seed, std::uint64_t first, std::int64_t rows, std::int64_t begin, std::int64_t end,
         std::uint64_t threshold, std::uintptr_t words) {
        draw_rows(seed, first, rows, begin, end, threshold, pointer<std::uint8_t>(words));
      },
      py::arg("seed"), py::arg("first"), py::arg("rows"), py::arg("begin"), py::arg("end"), py::arg("threshold"),
      py::arg("words"), py::call_guard<py::gil_scoped_release>(),
      "Random bits, set with probability threshold / 2**32: the 32-bit words [begin, end) of the rows from `first` on.");
}
