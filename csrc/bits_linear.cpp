#include "bits_linear.h"

#include <algorithm>

#include "runtime/bind.h"
#include "runtime/parallel.h"

namespace py = pybind11;

namespace cad_fast {
namespace {

// Words times targets that are worth a further thread.
constexpr std::int64_t grain_products = 1 << 13;

void run(const BitsLinear& task) {
  const auto kernel = CAD_FAST_DISPATCH(bits_linear);
  const std::int64_t units = task.transposed ? ceil_div(task.row_words, line_words) : task.rows;
  const std::int64_t each = task.targets * (task.transposed ? task.rows * line_words : task.row_words);
  const std::int64_t grain = ceil_div(grain_products, std::max<std::int64_t>(1, each));
  parallel_for(units, grain, [&](std::int64_t begin, std::int64_t end) noexcept { kernel(task, begin, end); });
}

}  // namespace
}  // namespace cad_fast

CAD_FAST_BIND(bits_linear, m) {
  using namespace cad_fast;
  m.def(
      "bits_linear",
      [](std::uintptr_t words, std::int64_t rows, std::int64_t row_words, std::uintptr_t x, std::uintptr_t y,
         std::int64_t targets, bool transposed) {
        run({pointer<const std::uint8_t>(words), rows, row_words, pointer<const double>(x), pointer<double>(y), targets,
             transposed});
      },
      py::arg("words"), py::arg("rows"), py::arg("row_words"), py::arg("x"), py::arg("y"), py::arg("targets"),
      py::arg("transposed"), py::call_guard<py::gil_scoped_release>(),
      "x [targets, 32 * row_words] times the transposed bits [rows, 32 * row_words], or x [targets, rows] times them.");
}
