// Where entries of an edit lie among others of their row.
#pragma once

#include <cstdint>

namespace cad_fast::CAD_FAST_TARGET {
namespace {

// The first entry from `begin` to `end` whose index is not below `index`; `end` if there is none.
[[maybe_unused]] std::int32_t lower_bound(const std::int64_t* indices, std::int32_t begin, std::int32_t end,
                                          std::int64_t index) {
  while (begin < end) {
    const std::int32_t middle = begin + (end - begin) / 2;
    if (indices[middle] < index) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET
