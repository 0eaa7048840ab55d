#pragma once

#include "linear.h"
#include "runtime/kernel.h"

namespace cad_fast {

// Where the entries of sparse edits lie in the packed panels of a product, so that a call need not find them. Entries are sorted
// by cells: a cell is what a panel holds of a block of the sum, and cell b * panels + p is that of block b and panel p.
struct EditPlan {
  const std::int64_t* offsets;  // [groups + 1]
  const std::int64_t* indices;  // [entries], in range, ascending within a group
  const float* factors;         // [entries]
  std::int64_t inner;           // of the product
  std::int64_t outer;
  bool transposed;
  bool bf16;
  std::int32_t* starts;          // [groups, cells + 1]: the entries of a group's cells, counted from the group's first
  std::uint16_t* places;         // [entries]: elements of the packed panel, from the beginning of the cell
  float* place_factors;          // [entries]: what they are multiplied by

  std::int64_t panels() const { return (outer + panel_width - 1) / panel_width; }
};

// Fills in what belongs to the groups [begin, end).
using EditPlanKernel = void(const EditPlan& plan, std::int64_t begin, std::int64_t end) noexcept;

CAD_FAST_DECLARE_KERNEL(edit_plan, EditPlanKernel)

// Blocks of the sum of so many elements.
using EditPlanBlocks = std::int64_t(std::int64_t inner, bool bf16) noexcept;

CAD_FAST_DECLARE_KERNEL(edit_plan_blocks, EditPlanBlocks)

}  // namespace cad_fast
