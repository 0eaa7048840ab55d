// The parallel loop of the linear ops.
#pragma once

#include <algorithm>

#include "linear.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace cad_fast {

// Multiplications that are worth a further thread.
constexpr std::int64_t grain_products = 1 << 18;

// Rows below which packing the weight in each thread costs more than an uneven division of its panels.
constexpr std::int64_t fewest_chunk_rows = 64;

// Cuts the rows where that is needed: for the scratch memory, or because the panels alone do not divide evenly.
inline std::int64_t chunks_for(const Linear& task, std::int64_t threads) {
  const std::int64_t chunks = std::max<std::int64_t>(1, ceil_div(task.rows, most_chunk_rows));
  const std::int64_t units = task.panels() * chunks;
  const bool uneven = 20 * ceil_div(units, threads) * threads > 21 * units;
  const bool enough = task.rows / threads >= fewest_chunk_rows;
  return uneven && enough ? ceil_div(chunks, threads) * threads : chunks;
}

// Calls kernel(task, begin, end, scratch) on ranges that cover all units. op_scratch is what a thread needs besides
// linear_scratch_bytes.
template <class Task, class Kernel>
void run_linear(Task task, std::int64_t op_scratch, Kernel kernel) {
  if (task.rows == 0 || task.outer == 0) return;
  const std::int64_t products = task.rows * task.outer * std::max<std::int64_t>(1, task.inner);
  const std::int64_t threads = std::clamp<std::int64_t>(products / grain_products, 1, num_threads());
  task.chunks = chunks_for(task, threads);
  const std::int64_t units = task.panels() * task.chunks;
  const std::int64_t ranges = std::min(threads, units);
  const std::int64_t chunk_rows = ceil_div(task.rows, task.chunks);
  const std::int64_t bytes = ceil_div(linear_scratch_bytes(chunk_rows, task.bf16) + op_scratch, 4096) * 4096;
  const ScratchMemory memory = make_scratch(ranges * bytes);
  parallel_for(ranges, 1, [&, scratch = memory.get()](std::int64_t begin, std::int64_t end) noexcept {
    for (std::int64_t i = begin; i < end; ++i) {
      kernel(task, units * i / ranges, units * (i + 1) / ranges, scratch + i * bytes);
    }
  });
}

}  // namespace cad_fast
