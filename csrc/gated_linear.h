#pragma once

#include "linear.h"
#include "runtime/kernel.h"

namespace cad_fast {

// Rows are multiplied by the gates of their variant while they are read; the weight is the same for all.
struct GatedLinear : Linear {
  const float* gates;         // [variants, inner], values that the tensors' type can hold
  std::int64_t variant_rows;  // rows per variant
};

// The units [begin, end) of a gated product, see Linear. The scratch is aligned to 64 bytes and the thread's own.
using GatedLinearKernel = void(const GatedLinear& task, std::int64_t begin, std::int64_t end,
                               std::uint8_t* scratch) noexcept;

CAD_FAST_DECLARE_KERNEL(gated_linear, GatedLinearKernel)

}  // namespace cad_fast
