#include "pack_bits.h"

#include "bits.h"
#include "runtime/bind.h"
#include "runtime/parallel.h"

namespace py = pybind11;

CAD_FAST_BIND(pack_bits, m) {
  m.def(
      "pack_bits",
      [](std::uintptr_t bytes, std::uintptr_t words, std::int64_t rows, std::int64_t n) {
        const auto kernel = CAD_FAST_DISPATCH(pack_bits);
        parallel_for(rows * words_for(n), grain_words, [=](std::int64_t begin, std::int64_t end) noexcept {
          kernel(pointer<const std::uint8_t>(bytes), pointer<std::uint8_t>(words), n, begin, end);
        });
      },
      py::arg("bytes"), py::arg("words"), py::arg("rows"), py::arg("n"), py::call_guard<py::gil_scoped_release>(),
      "Bytes [rows, n], nonzero meaning set, to 32-bit words [rows, ceil(n / 32)].");
}
