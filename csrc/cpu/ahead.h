// Memory that is needed later, fetched line by line between multiplications: many lines at once would take all of a core's
// miss buffers, and the loads of the multiplication would wait behind them.
#pragma once

#include <cstdint>

#include "runtime/kernel.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

constexpr std::int64_t line_bytes = 64;

// Lines that lie a stride apart.
struct Lines {
  const std::uint8_t* first = nullptr;
  std::int64_t stride = 0;
  std::int64_t count = 0;

  // Fetches the next one into the L2 cache.
  void fetch() {
    if (count == 0) return;
    __builtin_prefetch(first, 0, 2);
    first += stride;
    --count;
  }
};

// A matrix of which lines are handed out along its rows.
class Region {
 public:
  Region() = default;
  Region(const void* first, std::int64_t stride, std::int64_t rows, std::int64_t bytes)
      : first_(static_cast<const std::uint8_t*>(first)), stride_(stride), rows_(rows) {
    const std::int64_t offset = stride % line_bytes == 0 ? reinterpret_cast<std::uintptr_t>(first) % line_bytes
                                                         : line_bytes - 1;  // of some row, at worst
    first_ -= stride % line_bytes == 0 ? offset : 0;
    lines_ = (offset + bytes + line_bytes - 1) / line_bytes;
    // Rows that nearly touch are one row.
    if (stride < 2 * line_bytes) {
      lines_ = ((rows - 1) * stride + bytes + line_bytes - 1) / line_bytes + 1;
      rows_ = 1;
    }
  }

  // Lines of the next row, or of what is left of it: `most` at most.
  Lines take(std::int64_t most) {
    if (row_ == rows_) return {};
    const std::int64_t left = lines_ - line_;
    const Lines taken{first_ + row_ * stride_ + line_ * line_bytes, line_bytes, left < most ? left : most};
    line_ += taken.count;
    if (line_ == lines_) {
      line_ = 0;
      ++row_;
    }
    return taken;
  }

  // The same across the rows: a line of each.
  Lines take_across(std::int64_t most) {
    if (line_ == lines_) return {};
    const std::int64_t left = rows_ - row_;
    const Lines taken{first_ + row_ * stride_ + line_ * line_bytes, stride_, left < most ? left : most};
    row_ += taken.count;
    if (row_ == rows_) {
      row_ = 0;
      ++line_;
    }
    return taken;
  }

  bool one_row() const { return rows_ == 1; }

 private:
  const std::uint8_t* first_ = nullptr;
  std::int64_t stride_ = 0, rows_ = 0, lines_ = 0;
  std::int64_t row_ = 0, line_ = 0;
};

// What comes next: rows of x for the next tile, what the next segment needs, and the weight of the next block.
struct Ahead {
  Region rows, segment, weight;

  void take(std::int64_t most, Lines (&lines)[2]) {
    lines[0] = rows.take(most);
    lines[1] = segment.one_row() ? segment.take(most) : segment.take_across(most);
    if (lines[1].count == 0) lines[1] = weight.take_across(most);
  }
};

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
