// How an op adds its functions to the extension module: CAD_FAST_BIND(<op>, m) { m.def(...); } in csrc/<op>.cpp.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#define CAD_FAST_BIND(op, m) void cad_fast::bind::op(pybind11::module_& m)

#include "build_config.h"

namespace cad_fast::bind {

#define CAD_FAST_DECLARE_BIND(op) void op(pybind11::module_& m);
CAD_FAST_FOR_EACH_OP(CAD_FAST_DECLARE_BIND)
#undef CAD_FAST_DECLARE_BIND

}  // namespace cad_fast::bind

namespace cad_fast {

// Tensors cross the border as addresses; their owner keeps them alive for the length of the call.
template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace cad_fast
