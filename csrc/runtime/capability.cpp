#include "runtime/capability.h"

#include <algorithm>
#include <atomic>
#include <sstream>
#include <stdexcept>

#include "runtime/cpu.h"
#include "runtime/kernel.h"

namespace cad_fast {
namespace {

bool cpu_has_flag(const std::string& flag) {
  std::string wanted = flag.substr(2);
  std::replace(wanted.begin(), wanted.end(), '-', '_');
#define CAD_FAST_MATCH_FEATURE(name) \
  if (wanted == #name) return cpu_has(Feature::name);
  CAD_FAST_FOR_EACH_FEATURE(CAD_FAST_MATCH_FEATURE)
#undef CAD_FAST_MATCH_FEATURE
  return false;  // a feature nobody can detect counts as absent
}

std::string missing_features(const std::string& flags) {
  std::istringstream stream(flags);
  std::string flag, missing;
  while (stream >> flag) {
    if (!cpu_has_flag(flag)) missing += (missing.empty() ? "this CPU lacks " : ", ") + flag.substr(2);
  }
  return missing;
}

Target make_target(const char* name, const char* flags) {
  Target target{name, flags, missing_features(flags)};
  const bool needs_tiles = target.flags.find("-mamx-tile") != std::string::npos;
  if (target.why_not.empty() && needs_tiles && !tiles_granted()) {
    target.why_not = "the operating system does not let this process use the tile registers";
  }
  return target;
}

int best_target() {
  int best = 0;
  for (int i = 0; i < static_cast<int>(targets().size()); ++i) {
    if (targets()[i].why_not.empty()) best = i;
  }
  return best;
}

// All but the tile unit.
#define CAD_FAST_COUNT_TARGET(target, flags, unused) +1
constexpr int vector_targets = 0 CAD_FAST_FOR_EACH_TARGET(CAD_FAST_COUNT_TARGET, );
#undef CAD_FAST_COUNT_TARGET

// Whether set_capability was called: a set that is asked for by name runs all kernels.
std::atomic<bool> asked_for{false};

// The last set before one that multiplies pairs of bfloat16, if this CPU multiplies floats faster; else the set itself.
int without_slow_pairs(int index) {
  if (!floats_beat_pairs()) return index;
  while (index > 0 && targets()[index].flags.find("-mavx512bf16") != std::string::npos) --index;
  return index;
}

std::atomic<int>& selected() {
  static std::atomic<int> index{best_target()};
  return index;
}

}  // namespace

const std::vector<Target>& targets() {
#define CAD_FAST_MAKE_TARGET(target, flags, unused) make_target(#target, flags),
  static const std::vector<Target> all = {CAD_FAST_FOR_EACH_TARGET(CAD_FAST_MAKE_TARGET, )
#if defined(CAD_FAST_TILE_FLAGS)
                                              make_target("amx", CAD_FAST_TILE_FLAGS)
#endif
  };
#undef CAD_FAST_MAKE_TARGET
  return all;
}

int capability() noexcept {
  const int index = selected().load(std::memory_order_relaxed);
  return index < vector_targets ? index : vector_targets - 1;
}

bool tiles_in_use() noexcept { return selected().load(std::memory_order_relaxed) >= vector_targets; }

const std::string& capability_name() noexcept { return targets()[selected().load(std::memory_order_relaxed)].name; }

int bfloat16_capability() noexcept {
  return asked_for.load(std::memory_order_relaxed) ? capability() : without_slow_pairs(capability());
}

void set_capability(const std::string& name) {
  std::string names;
  for (int i = 0; i < static_cast<int>(targets().size()); ++i) {
    const Target& target = targets()[i];
    if (target.name != name) {
      names += (names.empty() ? "" : ", ") + target.name;
      continue;
    }
    if (!target.why_not.empty()) throw std::invalid_argument("'" + name + "' cannot run here: " + target.why_not);
    selected().store(i, std::memory_order_relaxed);
    asked_for.store(true, std::memory_order_relaxed);
    return;
  }
  throw std::invalid_argument("'" + name + "' is not among the compiled instruction sets (" + names + ")");
}

}  // namespace cad_fast
