#include "simt.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the fibers are written for x86-64"
#endif

// Saves the registers that a function must keep, and goes on where the other stack stopped.
extern "C" void simt_switch(void** save_to, void* go_to);
asm(R"(
.text
.globl simt_switch
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace simt {
namespace {

constexpr std::size_t stack_bytes = 128 * 1024;

enum class State { ready, at_block_barrier, at_barrier_of_first, at_barrier, at_warp, done };

struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool inside;
};

struct Product {
  std::function<void()> finish;
  const std::uint32_t* a;
  std::array<std::uint32_t, 4> a_before;
  const void* b;
  std::vector<std::uint16_t> b_before;
};

struct Fiber {
  void* stack_pointer = nullptr;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[stack_bytes]};
  State state = State::done;
  Position position;
  std::vector<std::vector<Copy>> copies;  // by group, the last one open
  std::vector<std::vector<Product>> products;
  bool products_open = false;
  const void* barrier = nullptr;  // where it waits,
  int parity = 0;                 // and for the end of which phase
  int first = 0;                  // of how many threads the barrier is
  const char* instruction = nullptr;
  unsigned exchanges = 0;
};

struct Warp {
  Given given[2][warp_size];  // alternating: a lane may give anew while others still read
};

struct Barrier {
  int threads = 0;
  int missing = 0;
  int expected = 0;  // bytes
  int begun = 0;
  int parity = 0;
  bool shown = false;
  std::vector<std::function<void()>> writes;
};

struct Grid {
  std::function<void()> kernel;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char, decltype(&std::free)> shared{nullptr, &std::free};
  std::ptrdiff_t shared_bytes = 0;
  void* scheduler = nullptr;
  const void* scheduler_stack = nullptr;
  std::size_t scheduler_stack_bytes = 0;
  int running = -1;
  std::map<const void*, Barrier> barriers;
  std::string error;
};

Grid grid;
std::string last_error;
int order_kind = 0;  // 0 forward, 1 reverse, else the seed of random orders

Fiber& own() { return grid.fibers[grid.running]; }

void to_scheduler(bool for_good) {
  Fiber& fiber = own();
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, grid.scheduler_stack, grid.scheduler_stack_bytes);
#endif
  (void)for_good;
  simt_switch(&fiber.stack_pointer, grid.scheduler);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

extern "C" void simt_fiber_main() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &grid.scheduler_stack, &grid.scheduler_stack_bytes);
#endif
  grid.kernel();
  for (const auto& group : own().copies) {
    if (!group.empty()) fail("a thread ended with copies under way");
  }
  for (const auto& group : own().products) {
    if (!group.empty()) fail("a thread ended with products under way");
  }
  own().state = State::done;
  to_scheduler(true);
}

void wait_in(State state) {
  own().state = state;
  to_scheduler(false);
}

void start(Fiber& fiber, Position position) {
  fiber.position = position;
  fiber.state = State::ready;
  fiber.copies.assign(1, {});
  fiber.products.assign(1, {});
  fiber.products_open = false;
  fiber.exchanges = 0;
  auto top = reinterpret_cast<std::uintptr_t>(fiber.stack.get() + stack_bytes) / 16 * 16;
  auto** stack = reinterpret_cast<void**>(top);
  *--stack = nullptr;  // simt_fiber_main never returns, and finds the stack as a call would leave it
  *--stack = reinterpret_cast<void*>(&simt_fiber_main);
  for (int i = 0; i < 6; ++i) *--stack = nullptr;
  fiber.stack_pointer = stack;
}

void resume(int index) {
  grid.running = index;
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, grid.fibers[index].stack.get(), stack_bytes);
#endif
  simt_switch(&grid.scheduler, grid.fibers[index].stack_pointer);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  grid.running = -1;
}

template <class Test>
bool all_of_warp(int warp, Test test) {
  const auto first = grid.fibers.begin() + warp * warp_size;
  return std::all_of(first, first + warp_size, test);
}

// Lets the lanes that wait for one another go on, once all have come.
void release_warp(int warp) {
  if (!all_of_warp(warp, [](const Fiber& f) { return f.state == State::at_warp; })) return;
  const Fiber& first = grid.fibers[warp * warp_size];
  if (!all_of_warp(warp, [&](const Fiber& f) { return std::strcmp(f.instruction, first.instruction) == 0; })) {
    grid.error = "the lanes of a warp came to different instructions";
    return;
  }
  for (int lane = 0; lane < warp_size; ++lane) grid.fibers[warp * warp_size + lane].state = State::ready;
}

// Lets those go on that wait for the end of a phase which has ended, or at a barrier to which all have come.
void release_barriers() {
  const auto threads = static_cast<std::ptrdiff_t>(grid.fibers.size());
  const auto release = [](State state, auto all_have_come) {
    const auto waits = [=](const Fiber& fiber) { return fiber.state == state; };
    const auto come = std::count_if(grid.fibers.begin(), grid.fibers.end(), waits);
    if (come == 0 || !all_have_come(come)) return;
    for (Fiber& fiber : grid.fibers) {
      if (waits(fiber)) fiber.state = State::ready;
    }
  };
  release(State::at_block_barrier, [=](std::ptrdiff_t come) { return come == threads; });
  release(State::at_barrier_of_first, [](std::ptrdiff_t come) { return come == grid.fibers[0].first; });
  for (Fiber& fiber : grid.fibers) {
    if (fiber.state == State::at_barrier && grid.barriers[fiber.barrier].parity != fiber.parity) fiber.state = State::ready;
  }
}

// Runs the threads of a block, always one warp as far as it goes before the next.
void run_block(std::mt19937& random) {
  const int warps = static_cast<int>(grid.warps.size());
  std::vector<int> warp_order(warps), lane_order(warp_size);
  std::iota(warp_order.begin(), warp_order.end(), 0);
  std::iota(lane_order.begin(), lane_order.end(), 0);
  if (order_kind == 1) {
    std::reverse(warp_order.begin(), warp_order.end());
    std::reverse(lane_order.begin(), lane_order.end());
  }
  const auto is_ready = [](const Fiber& fiber) { return fiber.state == State::ready; };
  while (grid.error.empty()) {
    release_barriers();
    if (order_kind > 1) {
      std::shuffle(warp_order.begin(), warp_order.end(), random);
      std::shuffle(lane_order.begin(), lane_order.end(), random);
    }
    const auto next = std::find_if(warp_order.begin(), warp_order.end(),
                                   [&](int warp) { return !all_of_warp(warp, [&](const Fiber& f) { return !is_ready(f); }); });
    if (next != warp_order.end()) {
      for (const int lane : lane_order) {
        const int index = *next * warp_size + lane;
        if (is_ready(grid.fibers[index]) && grid.error.empty()) resume(index);
      }
      release_warp(*next);
      continue;
    }
    release_barriers();
    if (std::any_of(grid.fibers.begin(), grid.fibers.end(), is_ready)) continue;
    if (std::any_of(grid.fibers.begin(), grid.fibers.end(), [](const Fiber& f) { return f.state != State::done; })) {
      grid.error = "some threads wait where the others do not come";
    }
    return;
  }
}

}  // namespace

const Position& position() { return own().position; }

unsigned char* shared_memory() { return grid.shared.get(); }

void fail(const char* message) {
  grid.error = message;
  own().state = State::done;
  to_scheduler(true);
  std::abort();
}

void block_barrier() { wait_in(State::at_block_barrier); }

const Given* exchange(const Given& given, const char* instruction) {
  Fiber& fiber = own();
  const int index = grid.running;
  Given* all = grid.warps[index / warp_size].given[fiber.exchanges++ % 2];
  all[index % warp_size] = given;
  fiber.instruction = instruction;
  wait_in(State::at_warp);
  return all;
}

void copy_async(void* to, const void* from, int bytes, bool inside) {
  const std::ptrdiff_t place = static_cast<unsigned char*>(to) - shared_memory();
  if (place % bytes != 0) fail("cp.async: the destination is not aligned");
  if (inside && reinterpret_cast<std::uintptr_t>(from) % bytes != 0) fail("cp.async: the source is not aligned");
  if (place < 0 || place + bytes > grid.shared_bytes) {
    fail("cp.async: the destination is not in shared memory");
  }
  std::memset(to, 0xff, bytes);
  own().copies.back().push_back({to, from, bytes, inside});
}

void close_copies() { own().copies.emplace_back(); }

void wait_copies(int groups) {
  auto& copies = own().copies;  // the open group is not waited for
  const std::ptrdiff_t closed = static_cast<std::ptrdiff_t>(copies.size()) - 1;
  const std::ptrdiff_t finished = std::max<std::ptrdiff_t>(0, closed - groups);
  for (std::ptrdiff_t i = 0; i < finished; ++i) {
    for (const Copy& copy : copies[i]) {
      if (copy.inside) {
        std::memcpy(copy.to, copy.from, copy.bytes);
      } else {
        std::memset(copy.to, 0, copy.bytes);
      }
    }
  }
  copies.erase(copies.begin(), copies.begin() + finished);
}

std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(static_cast<const unsigned char*>(pointer) - shared_memory());
}

std::uint16_t exchanged_element(const void* b, int row, int k) {
  const std::uint32_t place = shared_address(b) + row * 128 + k * 2;
  const std::uint32_t exchanged = place ^ (place >> 7 & 7u) << 4;
  if (exchanged + 2 > static_cast<std::uint32_t>(grid.shared_bytes)) fail("wgmma: a row is not in shared memory");
  std::uint16_t bits;
  std::memcpy(&bits, shared_memory() + exchanged, 2);
  return bits;
}

namespace {

std::vector<std::uint16_t> read_rows(const void* b, int columns) {
  std::vector<std::uint16_t> bits;
  for (int i = 0; i < 16 * columns; ++i) bits.push_back(exchanged_element(b, i / 16, i % 16));
  return bits;
}

}  // namespace

void begin_product(const std::uint32_t* a, const void* b, int columns, std::function<void()> finish) {
  if (!own().products_open) fail("wgmma: no fence before it");
  Product product{std::move(finish), a, {a[0], a[1], a[2], a[3]}, b, {}};
  if (grid.running % warp_size == 0) product.b_before = read_rows(b, columns);
  own().products.back().push_back(std::move(product));
}

void open_products() { own().products_open = true; }

void close_products() {
  own().products.emplace_back();
  own().products_open = false;
}

void wait_products(int groups) {
  auto& products = own().products;
  const std::ptrdiff_t closed = static_cast<std::ptrdiff_t>(products.size()) - 1;
  const std::ptrdiff_t finished = std::max<std::ptrdiff_t>(0, closed - groups);
  for (std::ptrdiff_t i = 0; i < finished; ++i) {
    for (const Product& product : products[i]) {
      if (!std::equal(product.a_before.begin(), product.a_before.end(), product.a)) {
        fail("wgmma: its registers changed before it was waited for");
      }
      if (!product.b_before.empty() &&
          product.b_before != read_rows(product.b, static_cast<int>(product.b_before.size()) / 16)) {
        fail("wgmma: its rows changed before it was waited for");
      }
      product.finish();
    }
  }
  products.erase(products.begin(), products.begin() + finished);
}

namespace {

Barrier& barrier_at(const void* place) {
  const auto found = grid.barriers.find(place);
  if (found == grid.barriers.end()) fail("mbarrier: none was made here");
  if (!found->second.shown) fail("mbarrier: it was not shown");
  return found->second;
}

// Ends the phase if all have arrived.
void proceed(Barrier& barrier) {
  if (barrier.missing > 0 || barrier.begun < barrier.expected) return;
  if (barrier.begun > barrier.expected) fail("mbarrier: more bytes arrive than were announced");
  for (const auto& write : barrier.writes) write();
  barrier.writes.clear();
  barrier.missing = barrier.threads;
  barrier.expected = barrier.begun = 0;
  barrier.parity ^= 1;
}

}  // namespace

void make_barrier(const void* place, int threads) {
  if (shared_address(place) % 8 != 0) fail("mbarrier: not aligned");
  grid.barriers[place] = {threads, threads, 0, 0, 0, false, {}};
}

void show_barriers() {
  for (auto& [place, barrier] : grid.barriers) barrier.shown = true;
}

void arrive(const void* place, int bytes) {
  Barrier& barrier = barrier_at(place);
  if (barrier.missing == 0) fail("mbarrier: more threads arrive than it was made for");
  barrier.expected += bytes;
  barrier.missing -= 1;
  proceed(barrier);
}

void wait(const void* place, int parity) {
  if (barrier_at(place).parity != parity) return;
  own().barrier = place;
  own().parity = parity;
  wait_in(State::at_barrier);
}

void copy_tile(void* to, int bytes, const void* place, std::function<void()> write) {
  const std::uint32_t address = shared_address(to);
  if (address % 1024 != 0) fail("a tile's place is not aligned to 1024 bytes");
  if (address + bytes > static_cast<std::uint32_t>(grid.shared_bytes)) fail("a tile's place is not in shared memory");
  Barrier& barrier = barrier_at(place);
  std::memset(to, 0xff, bytes);
  barrier.begun += bytes;
  barrier.writes.push_back(std::move(write));
  proceed(barrier);
}

void barrier_of_first(int threads) {
  own().first = threads;
  wait_in(State::at_barrier_of_first);
}

int run(std::function<void()> kernel, dim3 size, int threads, int shared_bytes) {
  grid.kernel = std::move(kernel);
  grid.fibers.resize(threads);
  grid.warps.resize(threads / warp_size);
  grid.error.clear();
  std::mt19937 random(order_kind);
  for (unsigned y = 0; y < size.y; ++y) {
    for (unsigned x = 0; x < size.x && grid.error.empty(); ++x) {
      // Of exactly this size, so that the sanitizer sees a step beyond its end.
      void* memory = nullptr;
      if (posix_memalign(&memory, 1024, shared_bytes) != 0) std::abort();
      grid.shared.reset(static_cast<unsigned char*>(memory));
      grid.shared_bytes = shared_bytes;
      std::memset(memory, 0xff, shared_bytes);
      grid.barriers.clear();
      for (int i = 0; i < threads; ++i) start(grid.fibers[i], {dim3(i), dim3(x, y)});
      run_block(random);
    }
  }
  last_error = grid.error;
  return last_error.empty() ? 0 : 9000;
}

}  // namespace simt

extern "C" {

// 0 runs threads and warps forward, 1 in reverse, anything else in random orders from that seed.
void simt_order(int order) { simt::order_kind = order; }

// Bytes of shared memory of the last grid.
std::int64_t simt_shared_bytes() { return simt::grid.shared_bytes; }

int cad_fast_cuda_device_count() { return 1; }

int cad_fast_cuda_use_device(int) { return 0; }

const char* cad_fast_cuda_message(int code) { return code == 9000 ? simt::last_error.c_str() : "an error code"; }

const char* cad_fast_cuda_build_info() { return "{}"; }
}
