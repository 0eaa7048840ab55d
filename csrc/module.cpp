// The extension module cad_fast._C: facts about the build and this CPU, and one binding per op.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <mutex>
#include <thread>
#include <tuple>
#include <vector>

#include "build_config.h"
#include "runtime/bind.h"
#include "runtime/capability.h"
#include "runtime/cpu.h"
#include "runtime/kernel.h"
#include "runtime/parallel.h"

namespace py = pybind11;

namespace cad_fast {
namespace {

py::dict build_info() {
  py::dict flags;
  for (const Target& target : targets()) flags[py::str(target.name)] = target.flags;
  py::dict info;
  info["version"] = CAD_FAST_VERSION;
  info["compiler"] = CAD_FAST_COMPILER;
  info["architecture"] = CAD_FAST_ARCHITECTURE;
  info["flags"] = CAD_FAST_CXX_FLAGS;
  info["targets"] = flags;
  return info;
}

py::dict cpu_features() {
  py::dict features;
#define CAD_FAST_ADD_FEATURE(name) features[#name] = cpu_has(Feature::name);
  CAD_FAST_FOR_EACH_FEATURE(CAD_FAST_ADD_FEATURE)
#undef CAD_FAST_ADD_FEATURE
  return features;
}

py::dict capabilities() {
  py::dict why_not;
  for (const Target& target : targets()) {
    why_not[py::str(target.name)] = target.why_not.empty() ? py::object(py::none()) : py::str(target.why_not);
  }
  return why_not;
}

using Range = std::tuple<std::int64_t, std::int64_t, unsigned long>;

std::vector<Range> parallel_ranges(std::int64_t n, std::int64_t grain) {
  struct Log {
    std::mutex mutex;
    std::vector<Range> ranges;
  } log;
  run_ranges(
      n, grain,
      [](std::int64_t begin, std::int64_t end, void* context) {
        auto* shared = static_cast<Log*>(context);
        const auto id = static_cast<unsigned long>(std::hash<std::thread::id>()(std::this_thread::get_id()));
        const std::lock_guard<std::mutex> lock(shared->mutex);
        shared->ranges.emplace_back(begin, end, id);
      },
      &log);
  return log.ranges;
}

}  // namespace
}  // namespace cad_fast

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  using namespace cad_fast;
  m.doc() = "Native kernels of cad_fast. They take addresses; shapes and dtypes are checked in cad_fast.ops.";

  m.def("build_info", &build_info, "Version, compiler and flags, and the flags of each compiled instruction set.");
  m.def("cpu_features", &cpu_features, "Feature name -> whether CPU and operating system support it.");
  m.def("capabilities", &capabilities, "Compiled instruction set -> None, or why it cannot run here.");
  m.def("capability", &capability_name, "The instruction set in use.");
  m.def("bfloat16_capability", [] { return targets()[bfloat16_capability()].name; },
        "The instruction set that multiplies bfloat16.");
  m.def("set_capability", &set_capability, py::arg("name"), "Selects an instruction set; ValueError if it cannot run.");

  m.def(
      "set_thread_pool",
      [](std::uintptr_t parallel_for, std::uintptr_t get_num_threads) {
        set_thread_pool(reinterpret_cast<TorchParallelFor>(parallel_for),
                        reinterpret_cast<TorchGetNumThreads>(get_num_threads));
      },
      py::arg("parallel_for"), py::arg("get_num_threads"),
      "Addresses of torch_parallel_for and torch_get_num_threads; 0 and 0 make all loops serial.");
  m.def("has_thread_pool", &has_thread_pool, "Whether loops run on torch's threads.");
  m.def("num_threads", &num_threads, "Threads that a large loop is split over.");
  m.def("parallel_ranges", &parallel_ranges, py::arg("n"), py::arg("grain"),
        py::call_guard<py::gil_scoped_release>(),
        "How a loop over n steps is split: (begin, end, id of the thread) per range.");

#define CAD_FAST_CALL_BIND(op) bind::op(m);
  CAD_FAST_FOR_EACH_OP(CAD_FAST_CALL_BIND)
#undef CAD_FAST_CALL_BIND
}
