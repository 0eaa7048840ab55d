// A grid on the CPU, one fiber per thread: what csrc/cuda/device.h offers, with the meaning that PTX gives it.
//
// A fiber runs until it waits at a barrier or at an instruction of the whole warp, so that everything between two
// barriers happens in an order that the scheduler chooses (simt_order): a missing barrier shows as a read of what is not
// there yet. Shared memory starts as NaNs; a copy under way leaves NaNs, and its data come when it is waited for.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace simt {

constexpr int warp_size = 32;

struct Position {
  dim3 thread, block;
};
const Position& position();

unsigned char* shared_memory();

// Ends the grid with this message, which cad_fast_cuda_message then gives. Does not return.
[[noreturn]] void fail(const char* message);

void block_barrier();
void barrier_of_first(int threads);

// All lanes of the warp give 32 bytes and get those of all; `instruction` must be the same for all.
struct Given {
  std::uint32_t words[8];
};
const Given* exchange(const Given& own, const char* instruction);

std::uint32_t shared_address(const void* pointer);

void copy_async(void* to, const void* from, int bytes, bool inside);
void close_copies();
void wait_copies(int groups);

// The products of a warpgroup that a thread has begun: `finish` is called when they are waited for. What they read, `a` and
// `columns` rows of shared memory, may not change before.
void begin_product(const std::uint32_t* a, const void* b, int columns, std::function<void()> finish);
void open_products();
void close_products();
void wait_products(int groups);

// Barriers by their place in shared memory, which holds nothing.
void make_barrier(const void* barrier, int threads);
void show_barriers();
void arrive(const void* barrier, int bytes);
void wait(const void* barrier, int parity);

// Begins to write so many bytes, which arrive at the barrier; `write` is called as late as can be.
void copy_tile(void* to, int bytes, const void* barrier, std::function<void()> write);

// Element k of a row of 64 in shared memory, whose parts of 16 bytes are exchanged by the row's place.
std::uint16_t exchanged_element(const void* b, int row, int k);

int run(std::function<void()> kernel, dim3 grid, int threads, int shared_bytes);

std::uint16_t half_of(float value);
float float_of_half(std::uint16_t bits);
std::uint16_t bfloat16_of(float value);
float float_of_bfloat16(std::uint16_t bits);

}  // namespace simt

#define threadIdx (simt::position().thread)
#define blockIdx (simt::position().block)

inline void __syncthreads() { simt::block_barrier(); }
inline void __syncwarp() { simt::exchange({}, "syncwarp"); }

namespace cad_fast::cuda {

using std::fmaf;

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

inline unsigned char* shared_memory() { return simt::shared_memory(); }

template <int bytes>
void copy_async(void* to, const void* from, bool inside) {
  simt::copy_async(to, from, bytes, inside);
}
inline void close_copies() { simt::close_copies(); }
template <int groups>
void wait_copies() {
  simt::wait_copies(groups);
}

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

inline float to_float(float value) { return value; }
inline float to_float(Half value) { return simt::float_of_half(value.bits); }
inline float to_float(BFloat16 value) { return simt::float_of_bfloat16(value.bits); }

template <class T>
T from_float(float value) {
  return value;
}
template <>
inline Half from_float<Half>(float value) {
  return {simt::half_of(value)};
}
template <>
inline BFloat16 from_float<BFloat16>(float value) {
  return {simt::bfloat16_of(value)};
}

// ldmatrix.m8n8.x4: lane l gets elements 2 * (l % 4) and the next of row l / 4 of each matrix, or, transposed, of its
// column l / 4. Lane l's own address is that of row l % 8 of matrix l / 8.
template <bool transposed>
void load_matrices(std::uint32_t (&to)[4], const void* row) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) simt::fail("ldmatrix: a row is not aligned to 16 bytes");
  simt::Given own = {};
  std::memcpy(own.words, row, 16);
  const simt::Given* rows = simt::exchange(own, transposed ? "ldmatrix.trans" : "ldmatrix");
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const auto element = [&](int matrix, int r, int c) {
    return std::uint32_t{reinterpret_cast<const std::uint16_t*>(rows[8 * matrix + r].words)[c]};
  };
  for (int matrix = 0; matrix < 4; ++matrix) {
    const std::uint32_t low = transposed ? element(matrix, 2 * t, g) : element(matrix, g, 2 * t);
    const std::uint32_t high = transposed ? element(matrix, 2 * t + 1, g) : element(matrix, g, 2 * t + 1);
    to[matrix] = low | high << 16;
  }
}

// mma.m16n8k16.row.col. With g = lane / 4 and t = lane % 4, register i of a holds row g + 8 * (i % 2), columns 2t and
// 2t + 1 from 8 * (i / 2) on; register i of b holds column g, rows 2t and 2t + 1 from 8 * i on; sum i is that of row
// g + 8 * (i / 2) and column 2t + i % 2.
template <class T>
void multiply(T, float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  const simt::Given* given = simt::exchange({{a[0], a[1], a[2], a[3], b0, b1}}, "mma");
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const auto half_of_word = [](std::uint32_t word, int k) {
    return to_float(T{static_cast<std::uint16_t>(word >> (k % 2 * 16))});
  };
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k) {
      const std::uint32_t a_word = given[row % 8 * 4 + k % 8 / 2].words[row / 8 + k / 8 * 2];
      const std::uint32_t b_word = given[column * 4 + k % 8 / 2].words[4 + k / 8];
      sums[i] += half_of_word(a_word, k) * half_of_word(b_word, k);
    }
  }
}

inline std::uint32_t shared_address(const void* pointer) { return simt::shared_address(pointer); }

// wgmma.m64nNk16 with a from registers and rows of b in shared memory: the layout is that of mma.
template <int columns, class T>
void begin_product(T, float (&sums)[columns / 2], const std::uint32_t (&a)[4], const void* b) {
  const simt::Given* given = simt::exchange({{a[0], a[1], a[2], a[3]}}, "wgmma");
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  std::array<float, 32> elements;  // of rows g and g + 8
  for (int i = 0; i < 32; ++i) {
    const int k = i % 16;
    const std::uint32_t word = given[4 * g + k % 8 / 2].words[i / 16 + k / 8 * 2];
    elements[i] = to_float(T{static_cast<std::uint16_t>(word >> (k % 2 * 16))});
  }
  simt::begin_product(a, b, columns, [&sums, elements, b, t] {
    for (int i = 0; i < columns / 2; ++i) {
      const int row = i % 4 / 2, column = i / 4 * 8 + 2 * t + i % 2;
      for (int k = 0; k < 16; ++k) {
        sums[i] += elements[16 * row + k] * to_float(T{simt::exchanged_element(b, column, k)});
      }
    }
  });
}
inline void open_products() { simt::open_products(); }
inline void close_products() { simt::close_products(); }
template <int groups>
void wait_products() {
  simt::wait_products(groups);
}
template <class Registers>
void settle(Registers&) {}

using Barrier = std::uint64_t;

inline void make_barrier(Barrier* barrier, int threads) { simt::make_barrier(barrier, threads); }
inline void show_barriers() { simt::show_barriers(); }
inline void arrive(Barrier* barrier, bool really) {
  if (really) simt::arrive(barrier, 0);
}
inline void arrive_and_expect(Barrier* barrier, int bytes) { simt::arrive(barrier, bytes); }
inline void wait(Barrier* barrier, int parity) { simt::wait(barrier, parity); }
template <int threads>
void barrier_of_first() {
  simt::barrier_of_first(threads);
}
template <int count>
void take_registers() {}
template <int count>
void leave_registers() {}

// As the driver would describe it: a matrix, or images with a window.
struct Window;
struct TileMap {
  const std::uint16_t* data;
  std::int64_t rows;
  std::int64_t columns;
  int tile_rows;
  std::int64_t sizes[4];  // channels, width, height, images
  int lower[2], upper[2], stride[2];  // of columns, of rows
};

inline int map_tiles(TileMap& map, const void* matrix, std::int64_t rows, std::int64_t columns, int tile_rows) {
  if (reinterpret_cast<std::uintptr_t>(matrix) % 16 != 0 || columns % 8 != 0 || tile_rows > 256) return 9001;
  map = {static_cast<const std::uint16_t*>(matrix), rows, columns, tile_rows, {}, {}, {}, {}};
  return 0;
}

template <class Window>
int map_positions(TileMap& map, const void* images, std::int64_t count, const Window& window, int positions) {
  if (reinterpret_cast<std::uintptr_t>(images) % 16 != 0 || window.channels % 64 != 0 || positions > 256) return 9001;
  map = {static_cast<const std::uint16_t*>(images), 0, 0, positions, {window.channels, window.width, window.height, count},
         {}, {}, {}};
  for (int i = 0; i < 2; ++i) {
    map.lower[i] = -window.padding[1 - i];
    map.upper[i] = window.padding[1 - i] - (window.kernel[1 - i] - 1) * window.dilation[1 - i];
    map.stride[i] = window.stride[1 - i];
  }
  return 0;
}

// `to` is aligned to 1024 bytes.
inline std::uint16_t* exchanged_place(void* to, int row, int column) {
  const std::uint32_t place = row * 128 + column * 2;
  return reinterpret_cast<std::uint16_t*>(static_cast<unsigned char*>(to) + (place ^ (place >> 7 & 7u) << 4));
}

inline void copy_tile(void* to, const TileMap& from, int column, int row, Barrier* barrier) {
  simt::copy_tile(to, from.tile_rows * 128, barrier, [=] {
    for (int i = 0; i < from.tile_rows * 64; ++i) {
      const std::int64_t r = row + i / 64, c = column + i % 64;
      const bool inside = r < from.rows && c < from.columns;
      *exchanged_place(to, i / 64, i % 64) = inside ? from.data[r * from.columns + c] : 0;
    }
  });
}

// The positions go through the box between the corners of each image, in steps of the stride.
inline void copy_positions(void* to, const TileMap& from, int channel, int x, int y, int image, int right, int down,
                           Barrier* barrier) {
  if (right > 255 || down > 255) simt::fail("im2col: an offset is too large");
  simt::copy_tile(to, from.tile_rows * 128, barrier, [=] {
    const auto [channels, width, height, images] = from.sizes;
    std::int64_t at_x = x, at_y = y, at_image = image;
    for (int r = 0; r < from.tile_rows; ++r) {
      const std::int64_t column = at_x + right, row = at_y + down;
      const bool inside = column >= 0 && column < width && row >= 0 && row < height && at_image < images;
      const auto* pixel = from.data + ((at_image * height + row) * width + column) * channels + channel;
      for (int c = 0; c < 64; ++c) *exchanged_place(to, r, c) = inside ? pixel[c] : 0;
      at_x += from.stride[0];
      if (at_x < width + from.upper[0]) continue;
      at_x = from.lower[0];
      at_y += from.stride[1];
      if (at_y < height + from.upper[1]) continue;
      at_y = from.lower[1];
      at_image += 1;
    }
  });
}

// stmatrix.m8n8.x4.trans: lane l writes row l % 8 of matrix l / 8, of which the lanes hold the columns as ldmatrix would.
inline void store_matrices_transposed(void* row, const std::uint32_t (&from)[4]) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) simt::fail("stmatrix: a row is not aligned to 16 bytes");
  const simt::Given* given = simt::exchange({{from[0], from[1], from[2], from[3]}}, "stmatrix.trans");
  const int lane = threadIdx.x % 32, matrix = lane / 8, r = lane % 8;
  auto* elements = static_cast<std::uint16_t*>(row);
  for (int c = 0; c < 8; ++c) {
    elements[c] = static_cast<std::uint16_t>(given[4 * c + r / 2].words[matrix] >> (r % 2 * 16));
  }
}

// prmt.b32 in its default mode.
inline std::uint32_t permute(std::uint32_t a, std::uint32_t b, std::uint32_t choice) {
  const std::uint64_t bytes = a | std::uint64_t{b} << 32;
  std::uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t nibble = choice >> (4 * i) & 15u;
    const std::uint32_t byte = bytes >> (8 * (nibble & 7u)) & 255u;
    result |= (nibble & 8u ? (byte & 128u ? 255u : 0u) : byte) << (8 * i);
  }
  return result;
}

template <class T>
std::uint32_t multiply_pairs(T, std::uint32_t a, std::uint32_t b) {
  const auto product = [&](int shift) {
    const T x{static_cast<std::uint16_t>(a >> shift)}, y{static_cast<std::uint16_t>(b >> shift)};
    return std::uint32_t{from_float<T>(to_float(x) * to_float(y)).bits} << shift;
  };
  return product(0) | product(16);
}

template <class... Parameters>
int launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, void*, Parameters... parameters) {
  return simt::run([&] { kernel(parameters...); }, grid, threads, shared_bytes);
}

}  // namespace cad_fast::cuda
