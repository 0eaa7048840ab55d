#include "runtime/parallel.h"

#include <atomic>
#include <stdexcept>

namespace cad_fast {
namespace {

std::atomic<TorchParallelFor> pool_parallel_for{nullptr};
std::atomic<TorchGetNumThreads> pool_num_threads{nullptr};

}  // namespace

void set_thread_pool(TorchParallelFor parallel_for, TorchGetNumThreads get_num_threads) noexcept {
  pool_parallel_for = parallel_for;
  pool_num_threads = get_num_threads;
}

bool has_thread_pool() noexcept { return pool_parallel_for.load() != nullptr; }

int num_threads() {
  std::uint32_t threads = 1;
  const TorchGetNumThreads get = pool_num_threads.load();
  if (has_thread_pool() && get != nullptr && get(&threads) != 0) {
    throw std::runtime_error("torch_get_num_threads failed");
  }
  return static_cast<int>(threads);
}

void run_ranges(std::int64_t n, std::int64_t grain, RangeFunction function, void* context) {
  if (n <= 0) return;
  const TorchParallelFor pool = pool_parallel_for.load();
  if (pool == nullptr || n <= grain) return function(0, n, context);
  if (pool(0, n, grain, function, context) != 0) throw std::runtime_error("torch_parallel_for failed");
}

}  // namespace cad_fast
