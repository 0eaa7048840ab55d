#include "masked_conv2d.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>

#include "runtime/bind.h"
#include "runtime/parallel.h"

namespace py = pybind11;

namespace cad_fast {
namespace {

// Multiply-adds, or elements moved, that a parallel range has at least.
constexpr std::int64_t grain = 1 << 16;

std::int64_t steps_of(std::int64_t work_per_step) {
  return std::max<std::int64_t>(1, grain / std::max<std::int64_t>(1, work_per_step));
}

}  // namespace
}  // namespace cad_fast

CAD_FAST_BIND(masked_conv2d, m) {
  m.def(
      "masked_conv2d_weight",
      [](std::uintptr_t weight, std::uintptr_t words, std::uintptr_t expanded, std::int64_t rows, std::int64_t depth,
         float factor, bool bfloat16) {
        const auto kernel = CAD_FAST_DISPATCH(masked_conv2d_weight);
        const ExpandWeight job{pointer<const void>(weight), pointer<const std::uint8_t>(words), pointer<void>(expanded),
                               depth, factor, bfloat16};
        parallel_for(rows, steps_of(depth),
                     [&](std::int64_t begin, std::int64_t end) noexcept { kernel(job, begin, end); });
      },
      py::arg("weight"), py::arg("words"), py::arg("expanded"), py::arg("rows"), py::arg("depth"), py::arg("factor"),
      py::arg("bfloat16"), py::call_guard<py::gil_scoped_release>(),
      "The weight [rows, depth] of one variant, fp32 or bf16, its ablated elements multiplied by the factor.");
  m.def(
      "masked_conv2d_patches",
      [](std::uintptr_t x, std::uintptr_t patches, std::int64_t variants, std::array<std::int64_t, 4> shape,
         std::array<std::int64_t, 2> kernel_size, std::array<std::int64_t, 2> out_size,
         std::array<std::int64_t, 2> stride, std::array<std::int64_t, 2> dilation) {
        const auto kernel = CAD_FAST_DISPATCH(masked_conv2d_patches);
        const Patches job{pointer<const float>(x), pointer<float>(patches),
                          shape[0], shape[1], shape[2], shape[3],
                          kernel_size[0], kernel_size[1], out_size[0], out_size[1],
                          stride[0], stride[1], dilation[0], dilation[1]};
        const std::int64_t work = kernel_size[0] * kernel_size[1] * shape[0] * out_size[0] * out_size[1];
        parallel_for(variants * job.channels, steps_of(work),
                     [&](std::int64_t begin, std::int64_t end) noexcept { kernel(job, begin, end); });
      },
      py::arg("x"), py::arg("patches"), py::arg("variants"), py::arg("shape"), py::arg("kernel_size"),
      py::arg("out_size"), py::arg("stride"), py::arg("dilation"), py::call_guard<py::gil_scoped_release>(),
      "The patches of padded images, x [variants, *shape] with shape (images, channels, height, width), fp32.");
  m.def(
      "masked_conv2d",
      [](std::uintptr_t patches, std::uintptr_t weight, std::uintptr_t words, std::uintptr_t bias,
         std::uintptr_t factors, std::uintptr_t out, std::int64_t variants, std::int64_t rows, std::int64_t depth,
         std::int64_t positions, bool bfloat16) {
        const auto kernel = CAD_FAST_DISPATCH(masked_conv2d);
        const MaskedProduct job{pointer<const float>(patches), pointer<const void>(weight),
                                pointer<const std::uint8_t>(words), pointer<const float>(bias),
                                pointer<const float>(factors), pointer<float>(out),
                                variants, rows, depth, positions, bfloat16};
        const std::int64_t work = std::min(rows, product_block) * depth * positions / 16;
        parallel_for(divide_up(rows, product_block) * variants, steps_of(work),
                     [&](std::int64_t begin, std::int64_t end) noexcept { kernel(job, begin, end); });
      },
      py::arg("patches"), py::arg("weight"), py::arg("words"), py::arg("bias"), py::arg("factors"), py::arg("out"),
      py::arg("variants"), py::arg("rows"), py::arg("depth"), py::arg("positions"), py::arg("bfloat16"),
      py::call_guard<py::gil_scoped_release>(),
      "Each variant's weight times its patches, fp32 [variants, rows, positions]; bias and factors may be 0.");
  m.def("masked_conv2d_panel_width", &panel_width, py::arg("positions"), "Positions in a panel of patches.");
}
