#include "gate_channels.h"

#include <algorithm>

#include "runtime/bind.h"
#include "runtime/parallel.h"

namespace py = pybind11;

namespace cad_fast {
namespace {

// Elements that are worth a further thread.
constexpr std::int64_t gate_grain = 1 << 15;

}  // namespace
}  // namespace cad_fast

CAD_FAST_BIND(gate_channels, m) {
  m.def(
      "gate_channels",
      [](std::uintptr_t source, std::uintptr_t target, std::uintptr_t gates, std::uintptr_t bias, std::int64_t variants,
         std::int64_t variant_images, std::int64_t channels, std::int64_t positions, bool channels_last, bool bf16) {
        const auto kernel = CAD_FAST_DISPATCH(gate_channels);
        const GateChannels job{pointer<const void>(source), pointer<void>(target), pointer<const float>(gates),
                               pointer<const void>(bias), variant_images, channels, positions, channels_last, bf16};
        const std::int64_t steps = variants * variant_images * (channels_last ? positions : channels);
        const std::int64_t length = std::max<std::int64_t>(1, channels_last ? channels : positions);
        parallel_for(steps, std::max<std::int64_t>(1, gate_grain / length),
                     [&](std::int64_t begin, std::int64_t end) noexcept { kernel(job, begin, end); });
      },
      py::arg("source"), py::arg("target"), py::arg("gates"), py::arg("bias"), py::arg("variants"),
      py::arg("variant_images"), py::arg("channels"), py::arg("positions"), py::arg("channels_last"), py::arg("bf16"),
      py::call_guard<py::gil_scoped_release>(),
      "A convolution's output times each variant's gates [variants, channels], fp32, but for the bias it holds already.");
}
