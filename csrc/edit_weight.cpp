#include "edit_weight.h"

#include "runtime/bind.h"
#include "runtime/parallel.h"

namespace py = pybind11;

CAD_FAST_BIND(edit_weight, m) {
  m.def(
      "edit_weight",
      [](std::uintptr_t weight, std::uintptr_t edited, std::uintptr_t indices, std::uintptr_t factors,
         std::int64_t count, bool bfloat16) {
        constexpr std::int64_t grain = 1 << 14;
        const auto kernel = CAD_FAST_DISPATCH(edit_weight);
        const EditWeight job{pointer<const void>(weight), pointer<void>(edited), pointer<const std::int64_t>(indices),
                             pointer<const float>(factors), bfloat16};
        parallel_for(count, grain, [&](std::int64_t begin, std::int64_t end) noexcept { kernel(job, begin, end); });
      },
      py::arg("weight"), py::arg("edited"), py::arg("indices"), py::arg("factors"), py::arg("count"),
      py::arg("bfloat16"), py::call_guard<py::gil_scoped_release>(),
      "Writes the elements of these flat indices into a copy of the weight: times the factors, or restored if 0.");
}
