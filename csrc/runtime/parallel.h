// Loops on torch's own thread pool, reached through the address of its C function torch_parallel_for.
//
// A second pool beside torch's would have its threads spin on the same cores. Without an address (torch before 2.10)
// loops run serially.
#pragma once

#include <cstdint>

namespace cad_fast {

using RangeFunction = void (*)(std::int64_t begin, std::int64_t end, void* context);

// The C interface of torch: both return 0 on success.
using TorchParallelFor = std::int32_t (*)(std::int64_t begin, std::int64_t end, std::int64_t grain, RangeFunction function,
                                          void* context);
using TorchGetNumThreads = std::int32_t (*)(std::uint32_t* threads);

// Null pointers mean: run serially.
void set_thread_pool(TorchParallelFor parallel_for, TorchGetNumThreads get_num_threads) noexcept;
bool has_thread_pool() noexcept;
int num_threads();

// Calls function on ranges that cover [0, n); ranges of less than `grain` steps are not split off.
void run_ranges(std::int64_t n, std::int64_t grain, RangeFunction function, void* context);

// body(begin, end) must not throw: it may run on a thread of the pool.
template <class Body>
void parallel_for(std::int64_t n, std::int64_t grain, Body body) {
  static_assert(noexcept(body(n, n)), "the body of a parallel loop must be noexcept");
  run_ranges(
      n, grain, [](std::int64_t begin, std::int64_t end, void* context) { (*static_cast<Body*>(context))(begin, end); },
      &body);
}

}  // namespace cad_fast
