#pragma once

#include "runtime/kernel.h"

namespace cad_fast {

// Of a list of edited elements, writes those in [begin, end) into the edited copy of the weight: multiplied by their
// factors, where factor 0 gives exact zeros, or as they were if there are no factors.
struct EditWeight {
  const void* weight;
  void* edited;
  const std::int64_t* indices;
  const float* factors;  // or null
  bool bfloat16;
};

using EditWeightKernel = void(const EditWeight& job, std::int64_t begin, std::int64_t end) noexcept;

CAD_FAST_DECLARE_KERNEL(edit_weight, EditWeightKernel)

}  // namespace cad_fast
