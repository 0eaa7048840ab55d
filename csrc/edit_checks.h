// Checks of sparse edits, for the bindings that take them.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace cad_fast {

inline void check_ascending(const char* name, const std::int64_t* values, std::int64_t count, std::int64_t last) {
  bool ascending = values[0] == 0 && values[count - 1] == last;
  for (std::int64_t i = 1; i < count; ++i) ascending &= values[i - 1] <= values[i];
  if (ascending) return;
  throw std::invalid_argument(std::string(name) + " must ascend from 0 to " + std::to_string(last));
}

// The position of the first entry that is out of range or not above the one before it, or `count`.
inline std::int64_t find_bad(const std::int64_t* indices, std::int64_t count, std::int64_t size) {
  bool ascending = count == 0 || indices[0] >= 0;
  for (std::int64_t i = 1; i < count; ++i) ascending &= indices[i] > indices[i - 1];
  if (count == 0 || (ascending && indices[count - 1] < size)) return count;
  std::int64_t i = 0;
  for (std::int64_t before = -1; indices[i] > before && indices[i] < size; ++i) before = indices[i];
  return i;
}

[[noreturn]] inline void throw_bad_index(const std::int64_t* indices, std::int64_t position, std::int64_t size) {
  const std::int64_t index = indices[position];
  std::string what = "indices[" + std::to_string(position) + "] = " + std::to_string(index);
  if (index < 0 || index >= size) {
    what += " is out of range for a weight of " + std::to_string(size) + " elements";
  } else {
    what += " must be above the index before it in its group, " + std::to_string(indices[position - 1]);
  }
  throw std::invalid_argument(what);
}

}  // namespace cad_fast
