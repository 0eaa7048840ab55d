#include "edited_linear.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "linear_loop.h"
#include "runtime/bind.h"

namespace py = pybind11;

namespace cad_fast {
namespace {

// Entries and rows of the weight that are worth a further thread when edits are prepared.
constexpr std::int64_t grain_entries = 1 << 13;

void check_ascending(const char* name, const std::int64_t* values, std::int64_t count, std::int64_t last) {
  bool ascending = values[0] == 0 && values[count - 1] == last;
  for (std::int64_t i = 1; i < count; ++i) ascending &= values[i - 1] <= values[i];
  if (ascending) return;
  throw std::invalid_argument(std::string(name) + " must ascend from 0 to " + std::to_string(last));
}

// The position of the first entry that is out of range or not above the one before it, or `count`.
std::int64_t find_bad(const std::int64_t* indices, std::int64_t count, std::int64_t size) {
  bool ascending = count == 0 || indices[0] >= 0;
  for (std::int64_t i = 1; i < count; ++i) ascending &= indices[i] > indices[i - 1];
  if (count == 0 || (ascending && indices[count - 1] < size)) return count;
  std::int64_t i = 0;
  for (std::int64_t before = -1; indices[i] > before && indices[i] < size; ++i) before = indices[i];
  return i;
}

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

[[noreturn]] void throw_bad_index(const std::int64_t* indices, std::int64_t position, std::int64_t size) {
  const std::int64_t index = indices[position];
  std::string what = "indices[" + std::to_string(position) + "] = " + std::to_string(index);
  if (index < 0 || index >= size) {
    what += " is out of range for a weight of " + std::to_string(size) + " elements";
  } else {
    what += " must be above the index before it in its group, " + std::to_string(indices[position - 1]);
  }
  throw std::invalid_argument(what);
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

// Groups without rows are left out, and neighbours without entries become one.
std::vector<EditGroup> groups_of(const Edits& edits, std::int64_t n, const std::int32_t* row_entries) {
  std::vector<EditGroup> groups;
  for (std::int64_t g = 0; g < edits.groups; ++g) {
    if (edits.rows[g] == edits.rows[g + 1]) continue;
    const std::int64_t first = edits.offsets[g];
    const bool plain = first == edits.offsets[g + 1];
    if (plain && !groups.empty() && groups.back().indices == nullptr) {
      groups.back().end_row = edits.rows[g + 1];
    } else {
      groups.push_back({edits.rows[g + 1], plain ? nullptr : edits.indices + first, edits.factors + first,
                        row_entries + g * (n + 1)});
    }
  }
  return groups;
}

void run_edited(EditedLinear task, const Edits& edits, std::int64_t n, std::int64_t k) {
  check_ascending("rows", edits.rows, edits.groups + 1, task.rows);
  const std::unique_ptr<std::int32_t[]> row_entries(new std::int32_t[static_cast<std::size_t>(edits.groups * (n + 1))]);
  find_rows_of_all(edits, n, k, row_entries.get());
  const std::vector<EditGroup> groups = groups_of(edits, n, row_entries.get());
  task.groups = groups.data();
  task.group_count = static_cast<std::int64_t>(groups.size());
  task.most_entries = 0;
  for (std::int64_t g = 0; g < edits.groups; ++g) {
    task.most_entries = std::max(task.most_entries, edits.offsets[g + 1] - edits.offsets[g]);
  }
  const bool tiles = tiles_in_use() && task.bf16;
  run_linear(task, edited_scratch_bytes(task) + (tiles ? tile_scratch_bytes(task) : 0),
             CAD_FAST_DISPATCH_TILES(edited_linear, tiles));
}

}  // namespace
}  // namespace cad_fast

CAD_FAST_BIND(edited_linear, m) {
  m.def(
      "edited_linear",
      [](std::uintptr_t x, std::uintptr_t weight, std::uintptr_t rows, std::uintptr_t offsets, std::uintptr_t indices,
         std::uintptr_t factors, std::uintptr_t bias, std::uintptr_t y, std::int64_t x_rows, std::int64_t groups,
         std::int64_t entries, std::int64_t n, std::int64_t k, bool transposed, bool bf16) {
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
        run_edited(task, edits, n, k);
      },
      py::arg("x"), py::arg("weight"), py::arg("rows"), py::arg("offsets"), py::arg("indices"), py::arg("factors"),
      py::arg("bias"), py::arg("y"), py::arg("x_rows"), py::arg("groups"), py::arg("entries"), py::arg("n"),
      py::arg("k"), py::arg("transposed"), py::arg("bf16"), py::call_guard<py::gil_scoped_release>(),
      "x [x_rows, k] times weights [n, k], rows[g] to rows[g + 1] under the edit of entries offsets[g] to "
      "offsets[g + 1]; with transposed x [x_rows, n] to y [x_rows, k]. ValueError for rows, offsets or indices that are "
      "not right.");
}
