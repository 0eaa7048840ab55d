#include "masked_linear_scores.h"

#include <algorithm>

#include "bits.h"
#include "runtime/bind.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace py = pybind11;

namespace cad_fast {
namespace {

// The largest multiple of the tile up to `most` that cuts `size` into parts of about equal size.
std::int64_t even_part(std::int64_t size, std::int64_t most, std::int64_t tile) {
  const std::int64_t parts = ceil_div(size, most);
  return ceil_div(ceil_div(size, parts), tile) * tile;
}

// Threads own disjoint blocks of the output. How it is cut does not change the order in which an element is summed.
void add_scores(const MaskedLinearScores& problem) {
  if (problem.n == 0 || problem.k == 0 || problem.variants == 0 || problem.rows == 0) return;
  const bool tiles = tiles_in_use() && tiles_suit(problem);
  const auto kernel = CAD_FAST_DISPATCH_TILES(masked_linear_scores, tiles, CAD_FAST_DISPATCH(masked_linear_scores));
  const std::int64_t threads = num_threads();
  const std::int64_t tile_n = tiles ? 2 * tile_side : scores_tile_n;
  const std::int64_t worker_scratch = tiles ? scores_tile_scratch : scores_scratch;

  std::int64_t block_n = even_part(problem.n, scores_max_n, tile_n);
  const std::int64_t block_k = even_part(problem.k, scores_max_k, scores_tile_k);
  const std::int64_t across = ceil_div(problem.k, block_k);
  while (threads > 1 && block_n >= std::max<std::int64_t>(32, 2 * tile_n) && ceil_div(problem.n, block_n) * across < 8 * threads) {
    block_n = even_part(block_n, block_n / 2, tile_n);
  }
  const std::int64_t blocks = ceil_div(problem.n, block_n) * across;

  const std::int64_t workers = std::min(threads, blocks);
  const ScratchMemory scratch = make_scratch(workers * worker_scratch * static_cast<std::int64_t>(sizeof(float)));
  auto* const memory = reinterpret_cast<float*>(scratch.get());
  parallel_for(workers, 1, [=, &problem](std::int64_t begin, std::int64_t end) noexcept {
    for (std::int64_t worker = begin; worker < end; ++worker) {
      for (std::int64_t i = worker; i < blocks; i += workers) {
        const std::int64_t n = i / across * block_n, k = i % across * block_k;
        const ScoresBlock block{n, std::min(n + block_n, problem.n), k, std::min(k + block_k, problem.k)};
        kernel(problem, block, memory + worker * worker_scratch);
      }
    }
  });
}

}  // namespace
}  // namespace cad_fast

CAD_FAST_BIND(masked_linear_scores, m) {
  m.def(
      "masked_linear_scores",
      [](std::uintptr_t grad, std::uintptr_t x, std::uintptr_t weight, std::uintptr_t words, std::uintptr_t kept,
         std::uintptr_t ablated, std::int64_t variants, std::int64_t rows, std::int64_t n, std::int64_t k,
         bool bfloat16) {
        add_scores({pointer<const void>(grad), pointer<const void>(x), pointer<const void>(weight),
                    pointer<const std::uint8_t>(words), pointer<float>(kept), pointer<float>(ablated), variants, rows,
                    n, k, bfloat16});
      },
      py::arg("grad"), py::arg("x"), py::arg("weight"), py::arg("words"), py::arg("kept"), py::arg("ablated"),
      py::arg("variants"), py::arg("rows"), py::arg("n"), py::arg("k"), py::arg("bfloat16"),
      py::call_guard<py::gil_scoped_release>(),
      "Adds weight * (grad^T x) of each variant to kept or ablated, as its words [variants, n, ceil(k / 32)] say.");
}
