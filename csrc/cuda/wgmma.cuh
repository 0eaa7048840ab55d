// What the kernels use of Hopper alone (sm_90a): wgmma.m64nNk16, the instruction of a warpgroup, whose operand a comes
// from registers; copies of tiles that the hardware carries out by itself; and the barriers that tell of them.
//
// With CAD_FAST_SIMT the same names come from simt.h.
#pragma once

#include "device.h"

namespace cad_fast::cuda {

// Images [images, height, width, channels] of a convolution whose weight is [filters, kernel rows, kernel columns,
// channels]. Pairs are for rows and columns.
struct Window {
  int height;
  int width;
  int channels;
  int out_height;
  int out_width;
  int kernel[2];
  int stride[2];
  int padding[2];
  int dilation[2];
};

}  // namespace cad_fast::cuda

#ifndef CAD_FAST_SIMT
#include <cuda.h>

namespace cad_fast::cuda {

// Operands and their numbers in the text, as many as an instruction has sums in a thread.
#define CAD_FAST_SUMS_4(s, i) "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3])
#define CAD_FAST_SUMS_8(s, i) CAD_FAST_SUMS_4(s, i), CAD_FAST_SUMS_4(s, i + 4)
#define CAD_FAST_SUMS_32(s, i) \
  CAD_FAST_SUMS_8(s, i), CAD_FAST_SUMS_8(s, i + 8), CAD_FAST_SUMS_8(s, i + 16), CAD_FAST_SUMS_8(s, i + 24)
#define CAD_FAST_SUMS_64(s, i) CAD_FAST_SUMS_32(s, i), CAD_FAST_SUMS_32(s, i + 32)
#define CAD_FAST_SUMS_128(s, i) CAD_FAST_SUMS_64(s, i), CAD_FAST_SUMS_64(s, i + 64)

#define CAD_FAST_NUMBERS_8 \
  "%0, %1, %2, %3, %4, %5, %6, %7"
#define CAD_FAST_NUMBERS_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define CAD_FAST_NUMBERS_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
  "%62, %63"
#define CAD_FAST_NUMBERS_128 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
  "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, " \
  "%102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, " \
  "%119, %120, %121, %122, %123, %124, %125, %126, %127"

#define CAD_FAST_WGMMA_8(type, s, a, b) \
  asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n16k16.f32." type "." type \
               " {" CAD_FAST_NUMBERS_8 "}, {%8, %9, %10, %11}, %12, p, 1, 1, 0;}" \
               : CAD_FAST_SUMS_8(s, 0) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

#define CAD_FAST_WGMMA_32(type, s, a, b) \
  asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type \
               " {" CAD_FAST_NUMBERS_32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;}" \
               : CAD_FAST_SUMS_32(s, 0) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

#define CAD_FAST_WGMMA_64(type, s, a, b) \
  asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type \
               " {" CAD_FAST_NUMBERS_64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;}" \
               : CAD_FAST_SUMS_64(s, 0) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

#define CAD_FAST_WGMMA_128(type, s, a, b) \
  asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type \
               " {" CAD_FAST_NUMBERS_128 "}, {%128, %129, %130, %131}, %132, p, 1, 1, 0;}" \
               : CAD_FAST_SUMS_128(s, 0) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// Where wgmma finds rows of 64 16-bit elements, 128 bytes each, whose 16-byte parts are exchanged by `exchanged`.
__device__ __forceinline__ std::uint64_t describe_rows(const void* rows) {
  constexpr std::uint64_t eight_rows = 1024 >> 4, exchanged_in_128_bytes = 1;
  const std::uint64_t place = (shared_address(rows) & 0x3ffffu) >> 4;
  return place | std::uint64_t{1} << 16 | eight_rows << 32 | exchanged_in_128_bytes << 62;
}

// Begins sums [64, columns] += a [64, 16] * b [columns, 16] in a warpgroup. Warp w has the outputs from 16 * w on, in the
// layout of `multiply`; b is where the first of the 16 elements of the first row would be if no parts were exchanged.
template <int columns>
__device__ __forceinline__ void begin_product(Half, float (&sums)[columns / 2], const std::uint32_t (&a)[4],
                                              const void* b) {
  const std::uint64_t rows = describe_rows(b);
  if constexpr (columns == 16) {
    CAD_FAST_WGMMA_8("f16", sums, a, rows);
  } else if constexpr (columns == 64) {
    CAD_FAST_WGMMA_32("f16", sums, a, rows);
  } else if constexpr (columns == 128) {
    CAD_FAST_WGMMA_64("f16", sums, a, rows);
  } else if constexpr (columns == 256) {
    CAD_FAST_WGMMA_128("f16", sums, a, rows);
  } else {
    static_assert(columns == 0, "no instruction of this size");
  }
}
template <int columns>
__device__ __forceinline__ void begin_product(BFloat16, float (&sums)[columns / 2], const std::uint32_t (&a)[4],
                                              const void* b) {
  const std::uint64_t rows = describe_rows(b);
  if constexpr (columns == 16) {
    CAD_FAST_WGMMA_8("bf16", sums, a, rows);
  } else if constexpr (columns == 64) {
    CAD_FAST_WGMMA_32("bf16", sums, a, rows);
  } else if constexpr (columns == 128) {
    CAD_FAST_WGMMA_64("bf16", sums, a, rows);
  } else if constexpr (columns == 256) {
    CAD_FAST_WGMMA_128("bf16", sums, a, rows);
  } else {
    static_assert(columns == 0, "no instruction of this size");
  }
}

// Keeps the compiler from computing operands later than here: between products, it would have to take them one by one.
__device__ __forceinline__ void settle(std::uint32_t (&a)[4]) {
  asm volatile("" : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])::"memory");
}
template <int count>
__device__ __forceinline__ void settle(float (&sums)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// Before the first product, and after the registers of one were written.
__device__ __forceinline__ void open_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Ends the group of products that were begun since the last call.
__device__ __forceinline__ void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until no more than so many groups are under way.
template <int groups>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups) : "memory");
}

// A barrier in shared memory: a phase ends when so many threads have arrived, and all bytes that were announced have.
using Barrier = std::uint64_t;

__device__ __forceinline__ void make_barrier(Barrier* barrier, int threads) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(threads) : "memory");
}

// Barriers that this thread made are there for copies of tiles, and after a __syncthreads for other threads.
__device__ __forceinline__ void show_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void arrive(Barrier* barrier, bool really) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %1, 0; @p mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];}" ::"r"(
                   shared_address(barrier)),
               "r"(static_cast<int>(really))
               : "memory");
}

// Arrives, and announces so many bytes of copies.
__device__ __forceinline__ void arrive_and_expect(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

// Waits for the end of a phase: phase 0 has parity 0, phase 1 parity 1, and so on. The phase before the first has ended.
__device__ __forceinline__ void wait(Barrier* barrier, int parity) {
  asm volatile(
      "{.reg .pred p;\n"
      "again: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra again;}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// How many registers the threads of this warpgroup have from here on.
template <int count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ __forceinline__ void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

// A barrier of the first so many threads of the block.
template <int threads>
__device__ __forceinline__ void barrier_of_first() {
  asm volatile("bar.sync 1, %0;" ::"n"(threads) : "memory");
}

// A matrix of 16-bit elements, or images, of which the hardware copies tiles. Rows of a tile have 128 bytes, whose parts
// of 16 bytes are exchanged; what a tile has beyond the matrix is zero.
struct TileMap {
  CUtensorMap map;
};

// The tile whose first element is at this column and row of a matrix [rows, columns].
__device__ __forceinline__ void copy_tile(void* to, const TileMap& from, int column, int row, Barrier* barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
               ::"r"(shared_address(to)),
               "l"(&from.map), "r"(column), "r"(row), "r"(shared_address(barrier))
               : "memory");
}

// Of images [images, height, width, channels], at the positions from (image, y, x) of the kernel's first element on, what
// is so many rows down and columns right of them: 64 channels from `channel` on.
__device__ __forceinline__ void copy_positions(void* to, const TileMap& from, int channel, int x, int y, int image,
                                               int right, int down, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6], {%7, %8};" ::"r"(shared_address(to)),
      "l"(&from.map), "r"(channel), "r"(x), "r"(y), "r"(image), "r"(shared_address(barrier)),
      "h"(static_cast<short>(right)), "h"(static_cast<short>(down))
      : "memory");
}

// Writes four 8x8 matrices of 16-bit elements transposed; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void store_matrices_transposed(void* row, const std::uint32_t (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
}

// The function of the driver by this name, which is not linked: the library must load where there is no driver.
template <class Function>
int find_in_driver(const char* name, Function*& function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
  if (error != cudaSuccess) return error;
  if (result != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  function = reinterpret_cast<Function*>(found);
  return 0;
}

// Tiles of so many rows and 64 columns of a matrix [rows, columns], contiguous; an error code.
inline int map_tiles(TileMap& map, const void* matrix, std::int64_t rows, std::int64_t columns, int tile_rows) {
  decltype(cuTensorMapEncodeTiled)* encode = nullptr;
  if (const int error = find_in_driver("cuTensorMapEncodeTiled", encode); error != 0) return error;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(columns) * 2};
  const cuuint32_t tile[] = {64, static_cast<cuuint32_t>(tile_rows)}, steps[] = {1, 1};
  return encode(&map.map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<void*>(matrix), sizes, strides, tile, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

// Tiles of so many positions and 64 channels of images, contiguous; an error code.
inline int map_positions(TileMap& map, const void* images, std::int64_t count, const Window& window, int positions) {
  decltype(cuTensorMapEncodeIm2col)* encode = nullptr;
  if (const int error = find_in_driver("cuTensorMapEncodeIm2col", encode); error != 0) return error;
  const cuuint64_t channels = window.channels, width = window.width, height = window.height;
  const cuuint64_t sizes[] = {channels, width, height, static_cast<cuuint64_t>(count)};
  const cuuint64_t strides[] = {channels * 2, width * channels * 2, height * width * channels * 2};
  const int lower[] = {-window.padding[1], -window.padding[0]};
  const int upper[] = {window.padding[1] - (window.kernel[1] - 1) * window.dilation[1],
                       window.padding[0] - (window.kernel[0] - 1) * window.dilation[0]};
  const cuuint32_t steps[] = {1, static_cast<cuuint32_t>(window.stride[1]), static_cast<cuuint32_t>(window.stride[0]), 1};
  return encode(&map.map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(images), sizes, strides, lower, upper, 64,
                static_cast<cuuint32_t>(positions), steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

}  // namespace cad_fast::cuda
#endif
