#include "gated_linear.h"

#include "linear_loop.h"
#include "runtime/bind.h"

namespace py = pybind11;

CAD_FAST_BIND(gated_linear, m) {
  m.def(
      "gated_linear",
      [](std::uintptr_t x, std::uintptr_t weight, std::uintptr_t gates, std::uintptr_t bias, std::uintptr_t y,
         std::int64_t variants, std::int64_t variant_rows, std::int64_t n, std::int64_t k, bool bf16) {
        GatedLinear task;
        task.x = pointer<const void>(x);
        task.weight = pointer<const void>(weight);
        task.bias = pointer<const void>(bias);
        task.y = pointer<void>(y);
        task.rows = variants * variant_rows;
        task.inner = k;
        task.outer = n;
        task.transposed = false;
        task.bf16 = bf16;
        task.gates = pointer<const float>(gates);
        task.variant_rows = variant_rows;
        run_linear(task, 0, CAD_FAST_DISPATCH_PRODUCT(gated_linear, bf16));
      },
      py::arg("x"), py::arg("weight"), py::arg("gates"), py::arg("bias"), py::arg("y"), py::arg("variants"),
      py::arg("variant_rows"), py::arg("n"), py::arg("k"), py::arg("bf16"), py::call_guard<py::gil_scoped_release>(),
      "x [variants, variant_rows, k] times gates [variants, k], fp32, times the weight [n, k]; zero where a gate is 0.");
}
