// Memory that is needed later, fetched line by line between multiplications: many lines at once would take all of a
// core's miss buffers, and the loads of the multiplication would wait behind them.
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

// A matrix, handed out in runs of lines: along its rows or across them, whichever runs are longer.
class Region {
 public:
  Region() = default;
  Region(const void* first, std::int64_t stride, std::int64_t rows, std::int64_t bytes)
      : first_(static_cast<const std::uint8_t*>(first)) {
    const bool alike = stride % line_bytes == 0;  // where a row begins within a line; else one may begin at its end
    const std::int64_t offset =
        alike ? static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(first) % line_bytes) : line_bytes - 1;
    if (alike) first_ -= offset;
    std::int64_t lines = (offset + bytes + line_bytes - 1) / line_bytes;
    if (stride < 2 * line_bytes) {  // rows that nearly touch are one row
      lines = ((rows - 1) * stride + offset + bytes + line_bytes - 1) / line_bytes;
      rows = 1;
    }
    const bool along = lines >= rows;
    length_ = along ? lines : rows;
    runs_ = along ? rows : lines;
    stride_ = along ? line_bytes : stride;
    run_stride_ = along ? stride : line_bytes;
  }

  // What is left of the next run: `most` lines at most.
  Lines take(std::int64_t most) {
    if (run_ == runs_) return {};
    const std::int64_t left = length_ - place_;
    const Lines taken{first_ + run_ * run_stride_ + place_ * stride_, stride_, left < most ? left : most};
    place_ += taken.count;
    if (place_ == length_) {
      place_ = 0;
      ++run_;
    }
    return taken;
  }

 private:
  const std::uint8_t* first_ = nullptr;
  std::int64_t length_ = 0, stride_ = 0;    // of a run: lines, and bytes from one to the next
  std::int64_t runs_ = 0, run_stride_ = 0;  // and from one run to the next
  std::int64_t run_ = 0, place_ = 0;        // what comes next
};

// What comes next: rows of x for the next tile, what the next segment needs, and the weight of the next block.
struct Ahead {
  Region rows, segment, weight;

  void take(std::int64_t most, Lines (&lines)[2]) {
    lines[0] = rows.take(most);
    lines[1] = segment.take(most);
    if (lines[1].count == 0) lines[1] = weight.take(most);
  }
};

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
