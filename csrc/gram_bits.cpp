#include "gram_bits.h"

#include <algorithm>

#include "runtime/bind.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace py = pybind11;

namespace cad_fast {
namespace {

// Tiles (i, j) with j <= i, counted row by row: 0 is (0, 0), 1 is (1, 0), 2 is (1, 1).
void count_tiles(const GramBits& task) {
  const auto kernel = CAD_FAST_DISPATCH(gram_bits);
  const std::int64_t side = ceil_div(task.rows, gram_tile);
  const std::int64_t tiles = side * (side + 1) / 2;
  const std::int64_t ranges = std::min<std::int64_t>(tiles, num_threads());
  const ScratchMemory memory = make_scratch(ranges * gram_scratch_bytes);
  parallel_for(ranges, 1, [&, scratch = memory.get()](std::int64_t begin, std::int64_t end) noexcept {
    for (std::int64_t range = begin; range < end; ++range) {
      std::int64_t tile = tiles * range / ranges;
      std::int64_t i = 0;
      while ((i + 1) * (i + 2) / 2 <= tile) ++i;
      std::int64_t j = tile - i * (i + 1) / 2;
      for (; tile < tiles * (range + 1) / ranges; ++tile) {
        kernel(task, i, j, scratch + range * gram_scratch_bytes);
        if (++j > i) {
          ++i;
          j = 0;
        }
      }
    }
  });
}

}  // namespace
}  // namespace cad_fast

CAD_FAST_BIND(gram_bits, m) {
  using namespace cad_fast;
  m.def(
      "gram_bits",
      [](std::uintptr_t words, std::int64_t rows, std::int64_t row_words, std::uintptr_t counts) {
        count_tiles({pointer<const std::uint8_t>(words), rows, row_words, pointer<std::int32_t>(counts)});
      },
      py::arg("words"), py::arg("rows"), py::arg("row_words"), py::arg("counts"),
      py::call_guard<py::gil_scoped_release>(),
      "Bits set in both of each two rows of 32-bit words [rows, row_words], as int32 [rows, rows].");
}
