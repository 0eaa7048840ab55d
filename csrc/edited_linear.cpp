#include "edited_linear.h"

#include <algorithm>
#include <vector>

#include "edit_checks.h"
#include "linear_loop.h"
#include "runtime/bind.h"

namespace py = pybind11;

namespace cad_fast {
namespace {

// Entries and rows of the weight that are worth a further thread when edits are prepared.
constexpr std::int64_t grain_entries = 1 << 13;

// Fills in where the entries of each of the n rows of the weight begin. Every entry claims to be the last of its row, and the
// last one to do so is: no branch depends on where rows end, which CPUs cannot foresee.
void find_rows(const std::int64_t* indices, std::int64_t count, std::int64_t n, std::int64_t k,
               std::int32_t* row_entries) {
  std::fill(row_entries, row_entries + n + 1, 0);
  const double per_index = 1.0 / static_cast<double>(k);
  for (std::int64_t i = 0; i < count; ++i) {
    // Half an index keeps the quotient clear of whole numbers, so that its rounding does not matter.
    const auto row = static_cast<std::int64_t>((static_cast<double>(indices[i]) + 0.5) * per_index);
    row_entries[row + 1] = static_cast<std::int32_t>(i + 1);
  }
  for (std::int64_t row = 0; row < n; ++row) row_entries[row + 1] = std::max(row_entries[row], row_entries[row + 1]);
}

struct Edits {
  const std::int64_t* rows;     // [groups + 1]
  const std::int64_t* offsets;  // [groups + 1]
  const std::int64_t* indices;
  const float* factors;
  std::int64_t groups;
};

// Checks all entries, and finds those of each row: row_entries is [groups, n + 1].
void find_rows_of_all(const Edits& edits, std::int64_t n, std::int64_t k, std::int32_t* row_entries) {
  std::vector<std::int64_t> good(static_cast<std::size_t>(edits.groups));
  const std::int64_t per_group = n + edits.offsets[edits.groups] / edits.groups;
  parallel_for(edits.groups, grain_entries / (per_group + 1), [&](std::int64_t begin, std::int64_t end) noexcept {
    for (std::int64_t g = begin; g < end; ++g) {
      const std::int64_t first = edits.offsets[g];
      const std::int64_t count = edits.offsets[g + 1] - first;
      good[g] = find_bad(edits.indices + first, count, n * k);
      if (good[g] == count) find_rows(edits.indices + first, count, n, k, row_entries + g * (n + 1));
    }
  });
  for (std::int64_t g = 0; g < edits.groups; ++g) {
    const std::int64_t position = edits.offsets[g] + good[g];
    if (position < edits.offsets[g + 1]) throw_bad_index(edits.indices, position, n * k);
  }
}

// Where a plan has put the entries; null without one.
struct PlannedEntries {
  const std::int32_t* starts;  // [groups, cells + 1]
  const std::uint16_t* places;
  const float* factors;
  std::int64_t cells;
};

// Groups without rows are left out, and neighbours without entries become one.
template <class MakeGroup>
std::vector<EditGroup> groups_of(const Edits& edits, MakeGroup make_group) {
  std::vector<EditGroup> groups;
  for (std::int64_t g = 0; g < edits.groups; ++g) {
    if (edits.rows[g] == edits.rows[g + 1]) continue;
    const bool plain = edits.offsets[g] == edits.offsets[g + 1];
    if (plain && !groups.empty() && groups.back().plain()) {
      groups.back().end_row = edits.rows[g + 1];
    } else {
      groups.push_back(plain ? EditGroup{} : make_group(g));
      groups.back().end_row = edits.rows[g + 1];
    }
  }
  return groups;
}

// Whether no element of x is infinite or NaN.
bool all_finite(const EditedLinear& task) {
  const std::int64_t count = task.rows * task.inner;
  std::uint32_t bad = 0;
  if (task.bf16) {
    const auto* x = static_cast<const std::uint16_t*>(task.x);
    for (std::int64_t i = 0; i < count; ++i) bad |= (x[i] & 0x7f80u) == 0x7f80u;
  } else {
    const auto* x = static_cast<const std::uint32_t*>(task.x);
    for (std::int64_t i = 0; i < count; ++i) bad |= (x[i] & 0x7f800000u) == 0x7f800000u;
  }
  return bad == 0;
}

void run_edited(EditedLinear task, const Edits& edits, std::int64_t n, std::int64_t k, const PlannedEntries& planned) {
  check_ascending("rows", edits.rows, edits.groups + 1, task.rows);
  std::unique_ptr<std::int32_t[]> row_entries;
  std::vector<EditGroup> groups;
  if (planned.starts != nullptr) {
    groups = groups_of(edits, [&](std::int64_t g) {
      const std::int64_t first = edits.offsets[g];
      EditGroup group{};
      group.starts = planned.starts + g * (planned.cells + 1);
      group.places = planned.places + first;
      group.factors = planned.factors == nullptr ? nullptr : planned.factors + first;
      return group;
    });
  } else {
    row_entries.reset(new std::int32_t[static_cast<std::size_t>(edits.groups * (n + 1))]);
    find_rows_of_all(edits, n, k, row_entries.get());
    groups = groups_of(edits, [&](std::int64_t g) {
      const std::int64_t first = edits.offsets[g];
      EditGroup group{};
      group.indices = edits.indices + first;
      group.factors = edits.factors + first;
      group.row_entries = row_entries.get() + g * (n + 1);
      return group;
    });
  }
  task.groups = groups.data();
  task.group_count = static_cast<std::int64_t>(groups.size());
  // Where there are many rows for each group, none has few enough to be mixed with others, or it does not matter.
  task.mixes = planned.starts != nullptr && task.rows <= 8 * task.group_count && all_finite(task);
  task.most_entries = 0;
  for (std::int64_t g = 0; g < edits.groups; ++g) {
    task.most_entries = std::max(task.most_entries, edits.offsets[g + 1] - edits.offsets[g]);
  }
  const bool tiles = tiles_in_use() && task.bf16;
  run_linear(task, edited_scratch_bytes(task) + (tiles ? tile_scratch_bytes(task) : 0),
             CAD_FAST_DISPATCH_TILES(edited_linear, tiles, CAD_FAST_DISPATCH_PRODUCT(edited_linear, task.bf16)));
}

}  // namespace
}  // namespace cad_fast

CAD_FAST_BIND(edited_linear, m) {
  m.def(
      "edited_linear",
      [](std::uintptr_t x, std::uintptr_t weight, std::uintptr_t rows, std::uintptr_t offsets, std::uintptr_t indices,
         std::uintptr_t factors, std::uintptr_t bias, std::uintptr_t y, std::int64_t x_rows, std::int64_t groups,
         std::int64_t entries, std::int64_t n, std::int64_t k, bool transposed, bool bf16,
         std::uintptr_t starts, std::uintptr_t places, std::uintptr_t place_factors, std::int64_t cells) {
        EditedLinear task;
        task.x = pointer<const void>(x);
        task.weight = pointer<const void>(weight);
        task.bias = pointer<const void>(bias);
        task.y = pointer<void>(y);
        task.rows = x_rows;
        task.inner = transposed ? n : k;
        task.outer = transposed ? k : n;
        task.transposed = transposed;
        task.bf16 = bf16;
        const Edits edits{pointer<const std::int64_t>(rows), pointer<const std::int64_t>(offsets),
                          pointer<const std::int64_t>(indices), pointer<const float>(factors), groups};
        check_ascending("offsets", edits.offsets, groups + 1, entries);
        run_edited(task, edits, n, k,
                   {pointer<const std::int32_t>(starts), pointer<const std::uint16_t>(places),
                    pointer<const float>(place_factors), cells});
      },
      py::arg("x"), py::arg("weight"), py::arg("rows"), py::arg("offsets"), py::arg("indices"), py::arg("factors"),
      py::arg("bias"), py::arg("y"), py::arg("x_rows"), py::arg("groups"), py::arg("entries"), py::arg("n"),
      py::arg("k"), py::arg("transposed"), py::arg("bf16"), py::arg("starts"), py::arg("places"),
      py::arg("place_factors"), py::arg("cells"), py::call_guard<py::gil_scoped_release>(),
      "x [x_rows, k] times weights [n, k], rows[g] to rows[g + 1] under the edit of entries offsets[g] to "
      "offsets[g + 1]; with transposed x [x_rows, n] to y [x_rows, k]. ValueError for rows, offsets or indices that are "
      "not right. With starts, places, place_factors and cells of edit_plan, which are 0 without one, it reads those for "
      "indices and factors; place_factors is 0 if all factors are.");
}
