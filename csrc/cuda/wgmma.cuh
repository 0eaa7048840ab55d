// wgmma.m64nNk16: the instruction of a warpgroup for Hopper (sm_90a), whose operand a comes from registers.
//
// With CAD_FAST_SIMT the same names come from simt.h.
#pragma once

#include "device.h"

#ifndef CAD_FAST_SIMT
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

// What this thread wrote to shared memory can be read by products after the next barrier.
__device__ __forceinline__ void show_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Writes four 8x8 matrices of 16-bit elements transposed; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void store_matrices_transposed(void* row, const std::uint32_t (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
}

}  // namespace cad_fast::cuda
#endif
