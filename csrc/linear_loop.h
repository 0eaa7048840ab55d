// The parallel loop of the linear ops.
#pragma once

#include <algorithm>

#include "linear.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace cad_fast {

// Multiplications that are worth a further thread.
constexpr std::int64_t grain_products = 1 << 18;

// Fewer rows are not cut: what an op does for each variant or group would be done twice for too many of them.
constexpr std::int64_t fewest_chunk_rows = 64;

// What the busiest thread does for each element of the sum, in half cycles of AVX-512 as measured on Zen 4: a panel takes 4
// for each row and 26 to be packed, and a row takes 1 to be copied for every block of panels.
inline std::int64_t cost_of(const Linear& task, std::int64_t threads, std::int64_t chunks) {
  const std::int64_t units = ceil_div(task.panels() * chunks, threads);
  const std::int64_t rows = ceil_div(task.rows, chunks);
  return units * (4 * rows + 26) + ceil_div(units, block_panels) * rows;
}

// Cuts the rows as far as the scratch memory asks for, or for each thread where that costs less: because the panels do not
// divide evenly, or are so few for a thread that it mostly copies rows.
inline std::int64_t chunks_for(const Linear& task, std::int64_t threads) {
  const std::int64_t fewest = std::max<std::int64_t>(1, ceil_div(task.rows, most_chunk_rows));
  const std::int64_t more = ceil_div(fewest, threads) * threads;
  const bool enough = task.rows / threads >= fewest_chunk_rows;
  return enough && cost_of(task, threads, more) < cost_of(task, threads, fewest) ? more : fewest;
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
