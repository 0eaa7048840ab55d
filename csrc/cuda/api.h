// The functions of the library, for any language: raw device pointers, sizes and a stream, all tensors contiguous.
//
// Each returns 0, or a code that cad_fast_cuda_message explains: CUDA's own, or one of Error. Kernels are started in the
// stream on the current device, and not waited for.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "device.h"

extern "C" {
// 0 float32, 1 float16, 2 bfloat16: the type of x, weight, bias and y. bias and factors may be null.
__attribute__((visibility("default"))) int cad_fast_cuda_masked_linear(
    const void* x, const void* weight, const std::uint32_t* words, const void* bias, const float* factors, void* y,
    std::int64_t variants, std::int64_t rows, std::int64_t n, std::int64_t k, int transposed, int dtype, void* stream);

// The work of an edited_linear, as rows and offsets [groups + 1] divide it; these, plan and sizes are on the host. Sets
// sizes [3]: tiles of rows, edits, and whether all groups have few rows. plan may be null, or has 3 * tiles + 2 * edits
// elements.
__attribute__((visibility("default"))) int cad_fast_cuda_plan_edits(const std::int64_t* rows,
                                                                    const std::int64_t* offsets, std::int64_t groups,
                                                                    int dtype, std::int32_t* plan, std::int64_t* sizes);

// How many elements the scratch memory `positions` has.
__attribute__((visibility("default"))) std::int64_t cad_fast_cuda_edit_positions(std::int64_t edits, std::int64_t n,
                                                                                 std::int64_t k, int transposed);

// Only sizes is on the host.
__attribute__((visibility("default"))) int cad_fast_cuda_edited_linear(
    const void* x, const void* weight, const std::int32_t* plan, const std::int64_t* sizes, const std::int64_t* indices,
    const float* factors, std::int32_t* positions, const void* bias, void* y, std::int64_t n, std::int64_t k,
    int transposed, int dtype, void* stream);

// masked_linear on Hopper (sm_90), float16 and bfloat16 only, rows of x [all_rows, ...] and of the weight at multiples of 16
// bytes, rows of words of an even number. With `runs` [blocks, segments, 3], on the device, the rows of x are divided as it
// says: each run is of a group (whose words these are), begins at a row, and has up to as many rows as the tile; without,
// it is groups of `rows` rows. tile_sizes is what cad_fast_cuda_wide_tile gave, on the host.
__attribute__((visibility("default"))) int cad_fast_cuda_wgmma_linear(
    const void* x, const void* weight, const std::uint32_t* words, const void* bias, const float* factors,
    const std::int32_t* runs, void* y, std::int64_t blocks, std::int64_t groups, std::int64_t rows, std::int64_t all_rows,
    const std::int64_t* tile_sizes, std::int64_t n, std::int64_t k, int transposed, int dtype, void* stream);

// masked_conv2d on Hopper, of images [images, height, width, channels] to images of the same layout; the weight and the
// words are [filters, kernel rows, kernel columns, channels]. shape, on the host: height, width, channels, height and
// width of the results, filters, height and width of the kernel, and two each of stride, padding and dilation. channels
// are a multiple of 64; rows are the positions of all images of a group, and `runs` are of positions.
__attribute__((visibility("default"))) int cad_fast_cuda_wgmma_conv2d(
    const void* x, const void* weight, const std::uint32_t* words, const void* bias, const float* factors,
    const std::int32_t* runs, void* y, std::int64_t blocks, std::int64_t groups, std::int64_t rows, std::int64_t images,
    const std::int64_t* tile_sizes, const std::int64_t* shape, int dtype, void* stream);

// Sets sizes [2]: the rows of a run and the runs of a block, for groups of about so many rows.
__attribute__((visibility("default"))) void cad_fast_cuda_wide_tile(std::int64_t rows, std::int64_t* sizes);

// How many devices there are, or minus the code of what prevents using any.
__attribute__((visibility("default"))) int cad_fast_cuda_device_count();

// Makes a device the current one of the calling thread, for the library's own copy of CUDA's runtime.
__attribute__((visibility("default"))) int cad_fast_cuda_use_device(int device);

__attribute__((visibility("default"))) const char* cad_fast_cuda_message(int code);

// What the library was built for and with, as JSON.
__attribute__((visibility("default"))) const char* cad_fast_cuda_build_info();
}

namespace cad_fast::cuda {

enum Error : int { too_large = -1, unknown_type = -2, not_aligned = -3, unknown_tile = -4 };

// Shared memory of a block on the smallest device since sm_80 (sm_86, sm_89, sm_120).
constexpr int most_shared_bytes = 99 * 1024;

// Tiles may reach beyond the sizes, so that these must stay some way below the end of int.
inline bool sizes_fit(std::initializer_list<std::int64_t> sizes) {
  for (const std::int64_t size : sizes) {
    if (size > (1 << 30)) return false;
  }
  return true;
}

inline bool grid_fits(std::int64_t x, std::int64_t y) { return x <= 0x7fffffff && y <= 65535; }

// Calls run(T{}, std::bool_constant<transposed>{}).
template <class Run>
int for_type(int dtype, int transposed, Run run) {
  const auto with = [&](auto type) { return transposed ? run(type, std::true_type{}) : run(type, std::false_type{}); };
  switch (dtype) {
    case 0: return with(float{});
    case 1: return with(Half{});
    case 2: return with(BFloat16{});
  }
  return unknown_type;
}

}  // namespace cad_fast::cuda
