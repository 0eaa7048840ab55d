#include "edit_plan.h"

#include "edit_checks.h"
#include "runtime/bind.h"
#include "runtime/parallel.h"

namespace py = pybind11;

namespace cad_fast {
namespace {

void check_edits(const EditPlan& plan, std::int64_t groups, std::int64_t entries) {
  check_ascending("offsets", plan.offsets, groups + 1, entries);
  const std::int64_t size = plan.inner * plan.outer;
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t first = plan.offsets[g], count = plan.offsets[g + 1] - first;
    const std::int64_t bad = find_bad(plan.indices + first, count, size);
    if (bad < count) throw_bad_index(plan.indices, first + bad, size);
  }
}

}  // namespace
}  // namespace cad_fast

CAD_FAST_BIND(edit_plan, m) {
  m.def(
      "edit_plan_cells",
      [](std::int64_t inner, std::int64_t outer, bool bf16) {
        const std::int64_t blocks = CAD_FAST_DISPATCH_PRODUCT(edit_plan_blocks, bf16)(inner, bf16);
        return blocks * ((outer + panel_width - 1) / panel_width);
      },
      py::arg("inner"), py::arg("outer"), py::arg("bf16"), "How many cells a plan for such a product has.");
  m.def(
      "edit_plan",
      [](std::uintptr_t offsets, std::uintptr_t indices, std::uintptr_t factors, std::uintptr_t starts,
         std::uintptr_t places, std::uintptr_t place_factors, std::int64_t groups, std::int64_t entries,
         std::int64_t inner, std::int64_t outer, bool transposed, bool bf16) {
        const EditPlan plan{pointer<const std::int64_t>(offsets), pointer<const std::int64_t>(indices),
                            pointer<const float>(factors), inner, outer, transposed, bf16,
                            pointer<std::int32_t>(starts), pointer<std::uint16_t>(places),
                            pointer<float>(place_factors)};
        check_edits(plan, groups, entries);
        const auto kernel = CAD_FAST_DISPATCH_PRODUCT(edit_plan, bf16);
        parallel_for(groups, 1, [&](std::int64_t begin, std::int64_t end) noexcept { kernel(plan, begin, end); });
      },
      py::arg("offsets"), py::arg("indices"), py::arg("factors"), py::arg("starts"), py::arg("places"),
      py::arg("place_factors"), py::arg("groups"), py::arg("entries"), py::arg("inner"), py::arg("outer"),
      py::arg("transposed"), py::arg("bf16"), py::call_guard<py::gil_scoped_release>(),
      "Sorts the entries of edits by where they lie in the packed panels of edited_linear. ValueError for offsets or "
      "indices that are not right.");
}
