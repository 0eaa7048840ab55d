#include "unpack_bits.h"

#include "bits.h"
#include "runtime/bind.h"
#include "runtime/parallel.h"

namespace py = pybind11;

CAD_FAST_BIND(unpack_bits, m) {
  m.def(
      "unpack_bits",
      [](std::uintptr_t words, std::uintptr_t bytes, std::int64_t rows, std::int64_t n) {
        const auto kernel = CAD_FAST_DISPATCH(unpack_bits);
        parallel_for(rows * words_for(n), grain_words, [=](std::int64_t begin, std::int64_t end) noexcept {
          kernel(pointer<const std::uint8_t>(words), pointer<std::uint8_t>(bytes), n, begin, end);
        });
      },
      py::arg("words"), py::arg("bytes"), py::arg("rows"), py::arg("n"), py::call_guard<py::gil_scoped_release>(),
      "32-bit words [rows, ceil(n / 32)] to bytes [rows, n] of 0 and 1.");
}
