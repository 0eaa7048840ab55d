#include "masked_linear.h"

#include "linear_loop.h"
#include "runtime/bind.h"

namespace py = pybind11;

CAD_FAST_BIND(masked_linear, m) {
  m.def(
      "masked_linear",
      [](std::uintptr_t x, std::uintptr_t weight, std::uintptr_t words, std::uintptr_t bias, std::uintptr_t factors,
         std::uintptr_t y, std::int64_t variants, std::int64_t variant_rows, std::int64_t n, std::int64_t k,
         bool transposed, bool bf16) {
        MaskedLinear task;
        task.x = pointer<const void>(x);
        task.weight = pointer<const void>(weight);
        task.bias = pointer<const void>(bias);
        task.y = pointer<void>(y);
        task.rows = variants * variant_rows;
        task.inner = transposed ? n : k;
        task.outer = transposed ? k : n;
        task.transposed = transposed;
        task.bf16 = bf16;
        task.words = pointer<const std::uint32_t>(words);
        task.factors = pointer<const float>(factors);
        task.variant_rows = variant_rows;
        const bool tiles = tiles_in_use() && tiles_suit(task);
        const bool panels = bf16 && !reads_pairs_as_they_lie(task);
        run_linear(task, tiles ? tile_scratch_bytes(task) : masked_scratch_bytes,
                   CAD_FAST_DISPATCH_TILES(masked_linear, tiles, CAD_FAST_DISPATCH_PRODUCT(masked_linear, panels)));
        return tiles ? "tiles, written anew for each variant"
                     : CAD_FAST_DISPATCH_PRODUCT(masked_linear_path, panels)(task);
      },
      py::arg("x"), py::arg("weight"), py::arg("words"), py::arg("bias"), py::arg("factors"), py::arg("y"),
      py::arg("variants"), py::arg("variant_rows"), py::arg("n"), py::arg("k"), py::arg("transposed"), py::arg("bf16"),
      py::call_guard<py::gil_scoped_release>(),
      "x [variants, variant_rows, k] times weights [n, k] without the bits of words [variants, n, ceil(k / 32)]; with "
      "transposed x [variants, variant_rows, n] to y [variants, variant_rows, k]. Returns the way taken, in words.");
}
