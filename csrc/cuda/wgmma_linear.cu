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

// map_x describes the rows of x to the hardware, in tiles of so many.
template <class Tile, class Rows, class MapX>
int start(const Linear& task, WideMasks masks, const Window& window, MapX map_x, void* stream) {
  const std::int64_t tiles = count_tiles<Tile>(task, masks);
  if (tiles < 0) return too_large;
  WideMaps maps;
  const int rows = Tile::transposed ? task.inner : task.outer, columns = Tile::transposed ? task.outer : task.inner;
  const int tile_rows = Tile::transposed ? Tile::depth : Tile::outer;
  if (const int error = map_tiles(maps.weight, task.weight, rows, columns, tile_rows); error != 0) return error;
  if (const int error = map_x(maps.x, Tile::rows); error != 0) return error;
  return launch(wgmma_product<Tile, Rows>, dim3(static_cast<unsigned>(tiles)), wide_threads, Tile::shared_bytes, stream,
                task, masks, maps, window);
}

// The tile for so many rows of a mask, by what was measured on an H200: small tiles, two of them at a time on a
// multiprocessor, hide how long it takes to begin a product.
template <class T, bool transposed, bool with_factors, class Rows, class MapX>
int run(const Linear& task, const WideMasks& masks, const Window& window, const std::int64_t* tile_sizes, MapX map_x,
        void* stream) {
  const auto with = [&](auto tile) { return start<decltype(tile), Rows>(task, masks, window, map_x, stream); };
  switch (tile_sizes[0]) {
    case 16: return with(WideTile<T, 16, 4, 3, 2, transposed, with_factors>{});
    case 64: return with(WideTile<T, 64, 1, 4, 2, transposed, with_factors>{});
    case 128: return with(WideTile<T, 128, 2, 4, 1, transposed, with_factors>{});
    case 256: return with(WideTile<T, 256, 1, 4, 1, transposed, with_factors>{});
  }
  return unknown_tile;
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
  sizes[1] = rows <= 16 ? 4 : rows > 64 && rows <= 128 ? 2 : 1;
}

int cad_fast_cuda_wgmma_linear(const void* x, const void* weight, const std::uint32_t* words, const void* bias,
                               const float* factors, const std::int32_t* runs, void* y, std::int64_t blocks,
                               std::int64_t groups, std::int64_t rows, std::int64_t all_rows,
                               const std::int64_t* tile_sizes, std::int64_t n, std::int64_t k, int transposed, int dtype,
                               void* stream) {
  using namespace cad_fast::cuda;
  if (groups == 0 || rows == 0 || (transposed ? k : n) == 0) return 0;
  if (!sizes_fit({blocks, groups, rows, all_rows, n, k})) return too_large;
  const WideMasks masks = make_masks(words, factors, runs, blocks, groups, rows, n, k);
  return for_type(dtype, transposed, [&](auto type, auto is_transposed) -> int {
    using T = decltype(type);
    if constexpr (sizeof(T) == 2) {
      const Linear task = make_linear(x, weight, bias, y, n, k, transposed, sizeof(T));
      if (!task.x_vectors || !task.weight_vectors || !aligned(words, 16)) return not_aligned;
      const auto map_x = [&](TileMap& map, int rows) { return map_tiles(map, x, all_rows, task.inner, rows); };
      return factors == nullptr
                 ? run<T, is_transposed, false, RowsOfLinear>(task, masks, {}, tile_sizes, map_x, stream)
                 : run<T, is_transposed, true, RowsOfLinear>(task, masks, {}, tile_sizes, map_x, stream);
    } else {
      return unknown_type;
    }
  });
}

int cad_fast_cuda_wgmma_conv2d(const void* x, const void* weight, const std::uint32_t* words, const void* bias,
                               const float* factors, const std::int32_t* runs, void* y, std::int64_t blocks,
                               std::int64_t groups, std::int64_t rows, std::int64_t images,
                               const std::int64_t* tile_sizes, const std::int64_t* shape, int dtype, void* stream) {
  using namespace cad_fast::cuda;
  const std::int64_t height = shape[0], width = shape[1], channels = shape[2], out_height = shape[3];
  const std::int64_t out_width = shape[4], filters = shape[5], kernel_height = shape[6], kernel_width = shape[7];
  const std::int64_t depth = kernel_height * kernel_width * channels;
  if (groups == 0 || rows == 0 || filters == 0) return 0;
  if (!sizes_fit({blocks, groups, rows, images * out_height * out_width, filters, depth})) return too_large;
  if (!sizes_fit({height, width, images * height * width / 2})) return too_large;
  if (channels % 64 != 0) return not_aligned;
  Window window = {};
  window.height = static_cast<int>(height);
  window.width = static_cast<int>(width);
  window.channels = static_cast<int>(channels);
  window.out_height = static_cast<int>(out_height);
  window.out_width = static_cast<int>(out_width);
  for (int i = 0; i < 2; ++i) {
    window.kernel[i] = static_cast<int>(shape[6 + i]);
    window.stride[i] = static_cast<int>(shape[8 + i]);
    window.padding[i] = static_cast<int>(shape[10 + i]);
    window.dilation[i] = static_cast<int>(shape[12 + i]);
    const std::int64_t reach = (shape[6 + i] - 1) * shape[12 + i];
    if (reach > 127 || shape[10 + i] > 127 || shape[8 + i] > 8) return too_large;  // for the hardware's description
  }
  const WideMasks masks = make_masks(words, factors, runs, blocks, groups, rows, filters, depth);
  return for_type(dtype, 0, [&](auto type, auto) -> int {
    using T = decltype(type);
    if constexpr (sizeof(T) == 2) {
      const Linear task = make_linear(x, weight, bias, y, filters, depth, false, sizeof(T));
      if (!aligned(x, 16) || !task.weight_vectors || !aligned(words, 16)) return not_aligned;
      const auto map_x = [&](TileMap& map, int rows) { return map_positions(map, x, images, window, rows); };
      return factors == nullptr
                 ? run<T, false, false, RowsOfConvolution>(task, masks, window, tile_sizes, map_x, stream)
                 : run<T, false, true, RowsOfConvolution>(task, masks, window, tile_sizes, map_x, stream);
    } else {
      return unknown_type;
    }
  });
}
