// What this CPU offers, and which of the compiled instruction sets is in use.
#pragma once

// Features are named like the compiler flag that lets the compiler use them, without the -m and with _ for any further -.
#define CAD_FAST_FOR_EACH_FEATURE(X) \
  X(popcnt) X(lzcnt) X(bmi) X(bmi2) X(f16c) X(fma) X(avx2) \
  X(avx512f) X(avx512bw) X(avx512cd) X(avx512dq) X(avx512vl) X(avx512vpopcntdq) X(avx512vbmi) X(gfni) \
  X(avx512bf16) X(amx_tile) X(amx_bf16)

namespace cad_fast {

#define CAD_FAST_FEATURE_ENUMERATOR(name) name,
enum class Feature { CAD_FAST_FOR_EACH_FEATURE(CAD_FAST_FEATURE_ENUMERATOR) };
#undef CAD_FAST_FEATURE_ENUMERATOR

// True if both the CPU and the operating system support the feature.
bool cpu_has(Feature feature) noexcept;

// True if the CPU multiplies bfloat16 faster as floats than in pairs: it starts one vdpbf16ps in two cycles, and four
// multiplications of floats (measured on Emerald Rapids; Intel's other CPUs are taken to be alike). Zen 4 starts as many of
// the one as of the other.
bool floats_beat_pairs() noexcept;

// True if the operating system lets this process use the tile registers. It is asked once; only where the CPU has them.
bool tiles_granted() noexcept;

}  // namespace cad_fast
