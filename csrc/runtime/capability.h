// The choice among the compiled instruction sets.
#pragma once

#include <string>
#include <vector>

namespace cad_fast {

struct Target {
  std::string name;
  std::string flags;
  std::string why_not;  // empty if this CPU can run it
};

// All compiled instruction sets, ascending in preference. The tile unit comes last: what has no kernels for it runs with the
// one before it.
const std::vector<Target>& targets();

// The name of the one in use.
const std::string& capability_name() noexcept;

// Selects an instruction set by name, for products of bfloat16 too; throws std::invalid_argument if there is none or it cannot run here.
void set_capability(const std::string& name);

}  // namespace cad_fast
