// Memory for intermediate results, on cache lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace cad_fast {

struct FreeMemory {
  void operator()(std::uint8_t* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};

// What a thread keeps for its next call: the system would hand out fresh pages each time, and mapping those costs a
// small layer more than computing it.
struct KeptScratch {
  static constexpr std::size_t most_bytes = std::size_t{64} << 20;
  std::unique_ptr<std::uint8_t, FreeMemory> memory;
  std::size_t bytes = 0;

  static KeptScratch& of_this_thread() {
    thread_local KeptScratch kept;
    return kept;
  }
};

// Gives memory back to the thread that lets go of it, if that has none larger.
struct ScratchDelete {
  std::size_t bytes = 0;

  void operator()(std::uint8_t* memory) const {
    KeptScratch& kept = KeptScratch::of_this_thread();
    if (bytes <= kept.bytes || bytes > KeptScratch::most_bytes) return FreeMemory()(memory);
    kept.memory.reset(memory);
    kept.bytes = bytes;
  }
};
using ScratchMemory = std::unique_ptr<std::uint8_t, ScratchDelete>;

// At least so many bytes, of any content.
inline ScratchMemory make_scratch(std::int64_t bytes) {
  const auto size = static_cast<std::size_t>(bytes);
  KeptScratch& kept = KeptScratch::of_this_thread();
  if (size <= kept.bytes) {
    const std::size_t found = kept.bytes;
    kept.bytes = 0;
    return ScratchMemory(kept.memory.release(), ScratchDelete{found});
  }
  return ScratchMemory(static_cast<std::uint8_t*>(::operator new(size, std::align_val_t{64})), ScratchDelete{size});
}

}  // namespace cad_fast
