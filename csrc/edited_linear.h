#pragma once

#include "linear.h"
#include "runtime/kernel.h"

namespace cad_fast {

// Rows that share an edit.
struct EditGroup {
  std::int64_t end_row;             // behind its last row; it begins where the group before it ends
  const std::int64_t* indices;      // flat into the weight [n, k], ascending; null without entries
  const float* factors;             // what those weights are multiplied by
  const std::int32_t* row_entries;  // [n + 1]: where the entries of each row of the weight begin
};

struct EditedLinear : Linear {
  const EditGroup* groups;
  std::int64_t group_count;
};

// Bytes of scratch besides linear_scratch_bytes: how far each group has come in each row of the weight that a thread
// works on, and the entries of a block: their places, factors and the weights to put back.
constexpr std::int64_t edited_scratch_bytes(std::int64_t groups, std::int64_t n, bool transposed) {
  const std::int64_t block = block_panels * panel_width;
  return 4 * groups * (transposed ? n : block) + 2 * 12 * block * block_steps + 8 * 64;
}

// The units [begin, end) of an edited product, see Linear. The scratch is aligned to 64 bytes and the thread's own.
using EditedLinearKernel = void(const EditedLinear& task, std::int64_t begin, std::int64_t end,
                                std::uint8_t* scratch) noexcept;

CAD_FAST_DECLARE_KERNEL(edited_linear, EditedLinearKernel)

}  // namespace cad_fast
