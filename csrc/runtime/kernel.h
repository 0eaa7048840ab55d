// How the kernels of one op, compiled once per instruction set, are declared and selected.
//
// Kernel sources include only headers without inline functions of external linkage (so no C++ standard library beyond
// <cstdint> and <cstring>) and keep their helpers internal. Otherwise the linker could pick the AVX-512 copy of such a
// function for everyone, and a CPU without AVX-512 would stop at an illegal instruction.
#pragma once

#include <cstdint>

#include "build_config.h"

namespace cad_fast {

// Index, among CAD_FAST_FOR_EACH_TARGET, of the instruction set in use.
int capability() noexcept;

// The same for products of bfloat16. It is another one where the CPU chose it and multiplies floats faster than pairs.
int bfloat16_capability() noexcept;

// Whether the kernels for the tile unit are in use, beside those of the last of these sets.
bool tiles_in_use() noexcept;

}  // namespace cad_fast

#define CAD_FAST_DECLARE_FOR_TARGET(target, flags, op, Signature) \
  namespace target {                                              \
  Signature op;                                                   \
  }

// In csrc/<op>.h, inside namespace cad_fast: declares cad_fast::<target>::<op> for every target.
#define CAD_FAST_DECLARE_KERNEL(op, Signature) CAD_FAST_FOR_EACH_TARGET(CAD_FAST_DECLARE_FOR_TARGET, op, Signature)

#define CAD_FAST_ADDRESS_FOR_TARGET(target, flags, op) &target::op,

#define CAD_FAST_KERNEL_OF(op, index)                                                                              \
  ([&] {                                                                                                           \
    static constexpr decltype(&portable::op) table[] = {CAD_FAST_FOR_EACH_TARGET(CAD_FAST_ADDRESS_FOR_TARGET, op)}; \
    return table[index];                                                                                           \
  }())

// In csrc/<op>.cpp: the kernel of the instruction set in use.
#define CAD_FAST_DISPATCH(op) CAD_FAST_KERNEL_OF(op, capability())

// The same for a kernel that multiplies pairs of bfloat16 where there are any, if told that this is all it would do.
#define CAD_FAST_DISPATCH_PRODUCT(op, pairs) CAD_FAST_KERNEL_OF(op, (pairs) ? bfloat16_capability() : capability())

// The same for a kernel that the tile unit has, too: declares cad_fast::amx::<op>, and chooses that one where tiles are in use
// and suit the task, else `otherwise`.
#if defined(CAD_FAST_TILE_FLAGS)
#define CAD_FAST_DECLARE_TILE_KERNEL(op, Signature) CAD_FAST_DECLARE_FOR_TARGET(amx, , op, Signature)
#define CAD_FAST_DISPATCH_TILES(op, suits, otherwise) (tiles_in_use() && (suits) ? &amx::op : (otherwise))
#else
#define CAD_FAST_DECLARE_TILE_KERNEL(op, Signature)
#define CAD_FAST_DISPATCH_TILES(op, suits, otherwise) (otherwise)
#endif
