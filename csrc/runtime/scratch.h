// Memory for intermediate results, on cache lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace cad_fast {

struct ScratchDelete {
  void operator()(std::uint8_t* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};
using ScratchMemory = std::unique_ptr<std::uint8_t, ScratchDelete>;

inline ScratchMemory make_scratch(std::int64_t bytes) {
  return ScratchMemory(static_cast<std::uint8_t*>(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{64})));
}

}  // namespace cad_fast
