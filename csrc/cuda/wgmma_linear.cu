// masked_linear and masked_conv2d on Hopper, and edits of one factor: rows of groups, each under its own packed mask.
#include "wgmma_linear.cuh"

#include "api.h"

namespace cad_fast::cuda {
namespace {

// How many blocks of rows there are; negative if too many.
template <class Tile>
std::int64_t count_tiles(const Linear& task, WideMasks& masks) {
  if (masks.runs == nullptr) {
    masks.row_tiles = (masks.rows + Tile::rows - 1) / Tile::rows;
    const std::int64_t blocks = (masks.groups + std::int64_t{Tile::segments} - 1) / Tile::segments * masks.row_tiles;
    if (!sizes_fit({blocks})) return -1;
    masks.blocks = static_cast<int>(blocks);
  }
  const std::int64_t tiles = std::int64_t{masks.blocks} * ((task.outer + Tile::outer - 1) / Tile::outer);
  return tiles <= 0x7fffffff && masks.blocks <= 0x7fffffff / 8 ? tiles : -1;
}

template <class Tile, class Kernel, class... Parameters>
int start(Kernel kernel, const Linear& task, WideMasks masks, void* stream, Parameters... parameters) {
  const std::int64_t tiles = count_tiles<Tile>(task, masks);
  if (tiles < 0) return too_large;
  const dim3 grid(static_cast<unsigned>(tiles));
  return launch(kernel, grid, wide_threads, Tile::shared_bytes, stream, task, masks, parameters...);
}

template <class T, bool transposed, bool with_factors>
int run(const Linear& task, const WideMasks& masks, int rows, void* stream) {
  const auto with = [&](auto tile) {
    using Tile = decltype(tile);
    return start<Tile>(wgmma_linear<Tile>, task, masks, stream);
  };
  if (rows <= 16) return with(WideTile<T, 16, 16, 3, transposed, with_factors>{});
  if (rows <= 64) return with(WideTile<T, 64, 4, 4, transposed, with_factors>{});
  if (rows <= 128) return with(WideTile<T, 128, 2, 4, transposed, with_factors>{});
  return with(WideTile<T, 256, 1, 4, transposed, with_factors>{});
}

template <class T, bool with_factors>
int run_convolution(const Linear& task, const WideMasks& masks, const Window& window, int rows, void* stream) {
  const auto with = [&](auto tile) {
    using Tile = decltype(tile);
    return start<Tile>(wgmma_conv2d<Tile>, task, masks, stream, window);
  };
  if (rows <= 64) return with(WideTile<T, 64, 4, 4, false, with_factors>{});
  if (rows <= 128) return with(WideTile<T, 128, 2, 4, false, with_factors>{});
  return with(WideTile<T, 256, 1, 4, false, with_factors>{});
}

WideMasks make_masks(const std::uint32_t* words, const float* factors, const std::int32_t* runs, std::int64_t blocks,
                     std::int64_t groups, std::int64_t rows, std::int64_t n, std::int64_t k) {
  static_assert(sizeof(Run) == 12);
  WideMasks masks = {};
  masks.words = words;
  masks.factors = factors;
  masks.runs = reinterpret_cast<const Run*>(runs);
  masks.groups = static_cast<int>(groups);
  masks.rows = static_cast<int>(rows);
  masks.row_words = static_cast<int>((k + 63) / 64 * 2);
  masks.n = static_cast<int>(n);
  masks.blocks = static_cast<int>(blocks);
  return masks;
}

}  // namespace
}  // namespace cad_fast::cuda

void cad_fast_cuda_wide_tile(std::int64_t rows, std::int64_t* sizes) {
  sizes[0] = rows <= 16 ? 16 : rows <= 64 ? 64 : rows <= 128 ? 128 : 256;
  sizes[1] = 256 / sizes[0];
}

int cad_fast_cuda_wgmma_linear(const void* x, const void* weight, const std::uint32_t* words, const void* bias,
                               const float* factors, const std::int32_t* runs, void* y, std::int64_t blocks,
                               std::int64_t groups, std::int64_t rows, std::int64_t n, std::int64_t k, int transposed,
                               int dtype, void* stream) {
  using namespace cad_fast::cuda;
  if (groups == 0 || rows == 0 || (transposed ? k : n) == 0 || (runs != nullptr && blocks == 0)) return 0;
  if (!sizes_fit({blocks, groups, rows, n, k, groups * rows})) return too_large;
  const WideMasks masks = make_masks(words, factors, runs, blocks, groups, rows, n, k);
  return for_type(dtype, transposed, [&](auto type, auto is_transposed) -> int {
    using T = decltype(type);
    if constexpr (sizeof(T) == 2) {
      const Linear task = make_linear(x, weight, bias, y, n, k, transposed, sizeof(T));
      if (!task.x_vectors || !task.weight_vectors || !aligned(words, 16)) return not_aligned;
      return factors == nullptr ? run<T, is_transposed, false>(task, masks, static_cast<int>(rows), stream)
                                : run<T, is_transposed, true>(task, masks, static_cast<int>(rows), stream);
    } else {
      return unknown_type;
    }
  });
}

int cad_fast_cuda_wgmma_conv2d(const void* x, const void* weight, const std::uint32_t* words, const void* bias,
                               const float* factors, const std::int32_t* runs, void* y, std::int64_t blocks,
                               std::int64_t groups, std::int64_t rows, std::int64_t images, const std::int64_t* shape,
                               int dtype, void* stream) {
  using namespace cad_fast::cuda;
  const std::int64_t height = shape[0], width = shape[1], channels = shape[2], out_height = shape[3];
  const std::int64_t out_width = shape[4], filters = shape[5], kernel_height = shape[6], kernel_width = shape[7];
  const std::int64_t depth = kernel_height * kernel_width * channels;
  if (groups == 0 || rows == 0 || filters == 0 || (runs != nullptr && blocks == 0)) return 0;
  if (!sizes_fit({blocks, groups, rows, images * out_height * out_width, filters, depth})) return too_large;
  if (images * height * width > 0x7fffffff) return too_large;
  if (!sizes_fit({height * 65536, width * 65536})) return too_large;  // half a word for a coordinate
  if (channels % 64 != 0) return not_aligned;
  Window window = {};
  window.height = static_cast<int>(height);
  window.width = static_cast<int>(width);
  window.out_height = static_cast<int>(out_height);
  window.out_width = static_cast<int>(out_width);
  window.channels = static_cast<int>(channels);
  window.kernel_width = static_cast<int>(kernel_width);
  for (int i = 0; i < 2; ++i) {
    window.stride[i] = static_cast<int>(shape[8 + i]);
    window.padding[i] = static_cast<int>(shape[10 + i]);
    window.dilation[i] = static_cast<int>(shape[12 + i]);
  }
  const WideMasks masks = make_masks(words, factors, runs, blocks, groups, rows, filters, depth);
  return for_type(dtype, 0, [&](auto type, auto) -> int {
    using T = decltype(type);
    if constexpr (sizeof(T) == 2) {
      const Linear task = make_linear(x, weight, bias, y, filters, depth, false, sizeof(T));
      if (!aligned(x, 16) || !task.weight_vectors || !aligned(words, 16)) return not_aligned;
      return factors == nullptr ? run_convolution<T, false>(task, masks, window, static_cast<int>(rows), stream)
                                : run_convolution<T, true>(task, masks, window, static_cast<int>(rows), stream);
    } else {
      return unknown_type;
    }
  });
}
