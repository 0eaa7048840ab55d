#include "masked_linear.h"

#include "cpu/tiles/product.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

// A block of the weight without what a variant ablates. Words lie like the weight's elements, so that each is a mask of a
// load, in both directions.
class MaskedTiles {
 public:
  explicit MaskedTiles(const MaskedLinear& task) : task_(task), weight_(static_cast<const bfloat16*>(task.weight)) {}

  std::int64_t segment_of(std::int64_t row) const { return row / task_.variant_rows; }
  std::int64_t end_of(std::int64_t variant) const { return (variant + 1) * task_.variant_rows; }
  void begin(const TileBlock&, bfloat16*) {}
  void restore(bfloat16*) {}

  void edit(const TileBlock& block, std::int64_t variant, bfloat16* target) const {
    const bfloat16* type = nullptr;
    const float factor = task_.factors == nullptr ? 0 : factor_as(task_.factors[variant], type);
    if (task_.transposed) {
      factor == 0 ? write_transposed<true>(block, variant, factor, target)
                  : write_transposed<false>(block, variant, factor, target);
    } else {
      factor == 0 ? write<true>(block, variant, factor, target) : write<false>(block, variant, factor, target);
    }
  }

 private:
  // 32 elements of a row; zeros behind the last one, which an infinite factor must not reach.
  template <bool remove>
  static __m512i without(const bfloat16* weight, std::uint32_t ablated, __mmask32 there, float factor) {
    if constexpr (remove) return _mm512_maskz_loadu_epi16(there & ~ablated, weight);
    const __m512i w = _mm512_maskz_loadu_epi16(there, weight);
    return _mm512_mask_mov_epi16(w, there & ablated, Pairs::scaled(w, factor));
  }

  template <bool remove>
  void write(const TileBlock& block, std::int64_t variant, float factor, bfloat16* target) const {
    // Where the next variant's words are, a cache line for each row, too far apart for the CPU to foresee.
    const std::int64_t next = task_.outer * words_for(task_.inner);
    const std::int64_t row_words = words_for(task_.inner);
    const std::uint32_t* words = task_.words + (variant * task_.outer + block.output) * row_words + block.element / 32;
    const bfloat16* weight = weight_ + block.output * task_.inner + block.element;
    write_rows(block, target, [=](std::int64_t o, std::int64_t i, __mmask32 there) __attribute__((always_inline)) {
      if (i == 0) __builtin_prefetch(words + next + o * row_words, 0, 2);
      return without<remove>(weight + o * task_.inner + i, words[o * row_words + i / 32], there, factor);
    });
  }

  template <bool remove>
  void write_transposed(const TileBlock& block, std::int64_t variant, float factor, bfloat16* target) const {
    const std::int64_t next = task_.inner * words_for(task_.outer);
    const std::int64_t row_words = words_for(task_.outer);
    const std::uint32_t* words = task_.words + (variant * task_.inner + block.element) * row_words + block.output / 32;
    const bfloat16* weight = weight_ + block.element * task_.outer + block.output;
    write_columns(block, target, [=](std::int64_t i, __mmask32 there) __attribute__((always_inline)) {
      __builtin_prefetch(words + next + i * row_words, 0, 2);
      return without<remove>(weight + i * task_.outer, words[i * row_words], there, factor);
    });
  }

  const MaskedLinear& task_;
  const bfloat16* weight_;
};

}  // namespace

void masked_linear(const MaskedLinear& task, std::int64_t begin, std::int64_t end, std::uint8_t* memory) noexcept {
  Scratch scratch(memory);
  MaskedTiles weights(task);
  TileProduct<MaskedTiles>(task, weights, scratch).run(begin, end);
}

}  // namespace cad_fast::CAD_FAST_TARGET
