#include "runtime/cpu.h"

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace cad_fast {
namespace {

#if defined(__x86_64__) && defined(__GNUC__)

enum class Register { eax, ebx, ecx, edx };

// Which registers the operating system has to save on a context switch, as bits of XCR0.
enum OsState : std::uint64_t { none = 0, ymm = 0x06, zmm = 0xe6, tiles = 0x60000 };

struct FeatureBit {
  Feature feature;
  unsigned leaf;
  unsigned subleaf;
  Register reg;
  int bit;
  OsState state;
};

constexpr FeatureBit feature_bits[] = {
    {Feature::popcnt, 1, 0, Register::ecx, 23, none},
    {Feature::lzcnt, 0x80000001, 0, Register::ecx, 5, none},
    {Feature::bmi, 7, 0, Register::ebx, 3, none},
    {Feature::bmi2, 7, 0, Register::ebx, 8, none},
    {Feature::f16c, 1, 0, Register::ecx, 29, ymm},
    {Feature::fma, 1, 0, Register::ecx, 12, ymm},
    {Feature::avx2, 7, 0, Register::ebx, 5, ymm},
    {Feature::avx512f, 7, 0, Register::ebx, 16, zmm},
    {Feature::avx512bw, 7, 0, Register::ebx, 30, zmm},
    {Feature::avx512cd, 7, 0, Register::ebx, 28, zmm},
    {Feature::avx512dq, 7, 0, Register::ebx, 17, zmm},
    {Feature::avx512vl, 7, 0, Register::ebx, 31, zmm},
    {Feature::avx512vpopcntdq, 7, 0, Register::ecx, 14, zmm},
    {Feature::avx512vbmi, 7, 0, Register::ecx, 1, zmm},
    {Feature::gfni, 7, 0, Register::ecx, 8, none},
    {Feature::avx512bf16, 7, 1, Register::eax, 5, zmm},
    {Feature::amx_tile, 7, 0, Register::edx, 24, tiles},
    {Feature::amx_bf16, 7, 0, Register::edx, 22, tiles},
};

std::uint64_t xcr0() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned osxsave = 1u << 27;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & osxsave)) return 0;
  std::uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}

std::uint32_t detect() {
  const std::uint64_t saved = xcr0();
  std::uint32_t found = 0;
  for (const FeatureBit& f : feature_bits) {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid_count(f.leaf, f.subleaf, &eax, &ebx, &ecx, &edx)) continue;
    const unsigned registers[] = {eax, ebx, ecx, edx};
    const unsigned value = registers[static_cast<int>(f.reg)];
    if (((value >> f.bit) & 1u) && (saved & f.state) == f.state) found |= 1u << static_cast<int>(f.feature);
  }
  return found;
}

bool made_by_intel() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ebx == signature_INTEL_ebx && ecx == signature_INTEL_ecx;
}

#else

std::uint32_t detect() { return 0; }
bool made_by_intel() { return false; }

#endif

bool ask_for_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM of <asm/prctl.h>, which may be older than the kernel
  constexpr long tile_data = 18;               // the number of the state in XCR0
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

}  // namespace

bool cpu_has(Feature feature) noexcept {
  static const std::uint32_t found = detect();
  return (found >> static_cast<int>(feature)) & 1u;
}

bool floats_beat_pairs() noexcept {
  static const bool intel = made_by_intel();
  return intel;
}

bool tiles_granted() noexcept {
  static const bool granted = cpu_has(Feature::amx_tile) && ask_for_tiles();
  return granted;
}

}  // namespace cad_fast
