#include "edit_weight.h"

#include "bfloat16.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

float representable(float factor, float) { return factor; }
float representable(float factor, bfloat16) { return to_float(to_bfloat16(factor)); }

template <class T>
void edit(const EditWeight& job, std::int64_t begin, std::int64_t end) {
  const T* weight = static_cast<const T*>(job.weight);
  T* edited = static_cast<T*>(job.edited);
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t at = job.indices[i];
    if (job.factors == nullptr)
      edited[at] = weight[at];
    else
      edited[at] = job.factors[i] == 0.0f ? T{} : scale(weight[at], representable(job.factors[i], T{}));
  }
}

}  // namespace

void edit_weight(const EditWeight& job, std::int64_t begin, std::int64_t end) noexcept {
  job.bfloat16 ? edit<bfloat16>(job, begin, end) : edit<float>(job, begin, end);
}

}  // namespace cad_fast::CAD_FAST_TARGET
