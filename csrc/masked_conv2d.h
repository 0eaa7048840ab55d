#pragma once

#include "runtime/kernel.h"

namespace cad_fast {

// Copies weight rows [begin, end) of [rows, depth] elements, one row of words each; the ablated elements are multiplied
// by the factor, and factor 0 gives exact zeros.
struct ExpandWeight {
  const void* weight;
  const std::uint8_t* words;
  void* expanded;
  std::int64_t depth;
  float factor;
  bool bfloat16;
};

// Lays out the patches of x [variants, images, channels, height, width], which holds its padding already, as
// [variants, panels, depth, panel_width]: depth = channels * kernel_height * kernel_width, and the positions of all
// images of a variant are cut into panels, the last one filled up with zeros.
struct Patches {
  const float* x;
  float* patches;
  std::int64_t images, channels, height, width;
  std::int64_t kernel_height, kernel_width, out_height, out_width;
  std::int64_t stride_height, stride_width, dilation_height, dilation_width;
};

// out[v] = masked weight of variant v [rows, depth] times its patches [depth, positions], plus the bias of the row.
struct MaskedProduct {
  const float* patches;
  const void* weight;
  const std::uint8_t* words;  // [variants, rows, words_for(depth)]
  const float* bias;          // [rows] or null
  const float* factors;       // [variants] or null
  float* out;                 // [variants, rows, positions]
  std::int64_t variants, rows, depth, positions;
  bool bfloat16;
};

constexpr std::int64_t product_block = 96;  // weight rows that a step of the product works on

// The same for every instruction set, so that patches need not know which one reads them.
constexpr std::int64_t panel_width(std::int64_t positions) { return positions > 16 ? 32 : 16; }

constexpr std::int64_t divide_up(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }

using ExpandWeightKernel = void(const ExpandWeight& job, std::int64_t begin, std::int64_t end) noexcept;
// Steps are planes: variants * channels of them.
using PatchesKernel = void(const Patches& job, std::int64_t begin, std::int64_t end) noexcept;
// Steps are blocks of rows by variants, the variants running faster: divide_up(rows, product_block) * variants of them.
using MaskedProductKernel = void(const MaskedProduct& job, std::int64_t begin, std::int64_t end) noexcept;

CAD_FAST_DECLARE_KERNEL(masked_conv2d_weight, ExpandWeightKernel)
CAD_FAST_DECLARE_KERNEL(masked_conv2d_patches, PatchesKernel)
CAD_FAST_DECLARE_KERNEL(masked_conv2d, MaskedProductKernel)

}  // namespace cad_fast
