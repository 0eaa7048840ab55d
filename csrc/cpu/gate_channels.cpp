#include "gate_channels.h"

#include "bfloat16.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

void store_as(float v, float* address) { *address = v; }
void store_as(float v, bfloat16* address) { *address = to_bfloat16(v); }

// target[i] = change(source[i], i). In place it is written without a second pointer, or compilers take the two for
// overlapping and do one element after the other.
template <class Element, class Change>
void for_each(const Element* source, Element* target, std::int64_t count, Change change) {
  if (source == target) {
    for (std::int64_t i = 0; i < count; ++i) target[i] = change(target[i], i);
  } else {
    for (std::int64_t i = 0; i < count; ++i) target[i] = change(source[i], i);
  }
}

template <class Element>
Element scaled(Element value, Element bias, float gate) {
  Element result;
  const float b = to_float(bias);
  store_as((to_float(value) - b) * gate + b, &result);
  return result;
}

// One channel: nothing is read where nothing of it remains, and nothing done where it is not changed.
template <class Element>
void gate_plane(const Element* source, Element* target, std::int64_t count, float gate, Element bias) {
  if (gate == 1) {
    if (source != target) std::memcpy(target, source, static_cast<std::size_t>(count) * sizeof *target);
  } else if (gate == 0) {
    for (std::int64_t i = 0; i < count; ++i) target[i] = bias;
  } else {
    for_each(source, target, count, [=](Element value, std::int64_t) { return scaled(value, bias, gate); });
  }
}

// All channels of one position.
template <class Element, bool biased>
void gate_row(const Element* source, Element* target, std::int64_t count, const float* gates, const Element* bias) {
  for_each(source, target, count, [=](Element value, std::int64_t i) {
    const Element bare = biased ? bias[i] : Element{0};
    const Element changed = gates[i] == 1 ? value : scaled(value, bare, gates[i]);
    return gates[i] == 0 ? bare : changed;
  });
}

template <class Element>
void run(const GateChannels& job, std::int64_t begin, std::int64_t end) {
  const auto* source = static_cast<const Element*>(job.source);
  auto* target = static_cast<Element*>(job.target);
  const auto* bias = static_cast<const Element*>(job.bias);
  const std::int64_t length = job.channels_last ? job.channels : job.positions;
  const std::int64_t variant_steps = job.variant_images * (job.channels_last ? job.positions : job.channels);
  for (std::int64_t step = begin; step < end; ++step) {
    const float* gates = job.gates + step / variant_steps * job.channels;
    const Element* from = source + step * length;
    Element* to = target + step * length;
    if (!job.channels_last) {
      const std::int64_t channel = step % job.channels;
      gate_plane(from, to, length, gates[channel], bias == nullptr ? Element{0} : bias[channel]);
    } else if (bias == nullptr) {
      gate_row<Element, false>(from, to, length, gates, bias);
    } else {
      gate_row<Element, true>(from, to, length, gates, bias);
    }
  }
}

}  // namespace

void gate_channels(const GateChannels& job, std::int64_t begin, std::int64_t end) noexcept {
  job.bf16 ? run<bfloat16>(job, begin, end) : run<float>(job, begin, end);
}

}  // namespace cad_fast::CAD_FAST_TARGET
