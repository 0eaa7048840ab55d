#pragma once

#include "runtime/kernel.h"

namespace cad_fast {

// Multiplies each channel of a variant's images by its gate, less the bias that they hold already: a gate of 1 copies
// and a gate of 0 leaves the bias alone, whatever was there.
struct GateChannels {
  const void* source;  // [images, channels, positions], or [images, positions, channels] if channels_last
  void* target;        // as source, which it may be itself
  const float* gates;  // [images / variant_images, channels], values that the tensors' type can hold
  const void* bias;    // [channels] or null, type of source
  std::int64_t variant_images, channels, positions;
  bool channels_last;
  bool bf16;
};

// Steps are planes, images * channels of them; or, channels last, rows of channels, images * positions of them.
using GateChannelsKernel = void(const GateChannels& job, std::int64_t begin, std::int64_t end) noexcept;

CAD_FAST_DECLARE_KERNEL(gate_channels, GateChannelsKernel)

}  // namespace cad_fast
