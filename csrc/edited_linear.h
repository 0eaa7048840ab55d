#pragma once

#include "linear.h"
#include "runtime/kernel.h"
#include "tiles.h"

namespace cad_fast {

// Rows that share an edit. Its entries are in the order of the weight, with the rows that they belong to; or in that of a plan.
struct EditGroup {
  std::int64_t end_row;             // behind its last row; it begins where the group before it ends
  const std::int64_t* indices;      // flat into the weight [n, k], ascending; null with a plan or without entries
  const float* factors;             // what those weights are multiplied by, in either order; null with a plan if all are 0
  const std::int32_t* row_entries;  // [n + 1]: where the entries of each row of the weight begin; null with a plan
  const std::int32_t* starts;       // as EditPlan has them; null without a plan
  const std::uint16_t* places;

  bool plain() const { return indices == nullptr && places == nullptr; }
};

struct EditedLinear : Linear {
  const EditGroup* groups;
  std::int64_t group_count;
  std::int64_t most_entries;  // in a group
  bool mixes;                 // whether there is a plan, and x is finite: a weight of zero may then be left out
};

// The group that a row belongs to.
constexpr std::int64_t group_of(const EditedLinear& task, std::int64_t row) {
  std::int64_t low = 0, high = task.group_count - 1;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (task.groups[middle].end_row > row) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Entries found at a time: those of one group in a block of the weight, whose steps are two elements at most, and what a vector
// of them reaches beyond.
inline std::int64_t most_found(const EditedLinear& task) {
  const std::int64_t block = block_panels * panel_width * 2 * block_steps;
  return (task.most_entries < block ? task.most_entries : block) + 8;
}

// Rows of the weight in which a thread keeps how far a group has come.
inline std::int64_t cursor_rows(const EditedLinear& task) {
  return task.transposed ? task.inner : block_panels * panel_width;
}

// Bytes of scratch besides linear_scratch_bytes: cursors, of the entries found their places, factors and the weights to put
// back, and the bits of a tile's rows.
inline std::int64_t edited_scratch_bytes(const EditedLinear& task) {
  return 4 * task.group_count * cursor_rows(task) + 12 * most_found(task) + 8 * most_tile_rows * block_steps + 5 * 64;
}

// The units [begin, end) of an edited product, see Linear. The scratch is aligned to 64 bytes and the thread's own.
using EditedLinearKernel = void(const EditedLinear& task, std::int64_t begin, std::int64_t end,
                                std::uint8_t* scratch) noexcept;

CAD_FAST_DECLARE_KERNEL(edited_linear, EditedLinearKernel)
CAD_FAST_DECLARE_TILE_KERNEL(edited_linear, EditedLinearKernel)

}  // namespace cad_fast
