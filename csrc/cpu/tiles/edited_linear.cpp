#include "edited_linear.h"

#include "cpu/entries.h"
#include "cpu/tiles/product.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

// Copies a block of the weight once, patches it for each group, and puts back what was there.
class EditedTiles {
 public:
  EditedTiles(const EditedLinear& task, Scratch& scratch)
      : task_(task),
        cursors_(scratch.take<std::int32_t>(task.group_count * cursor_rows(task))),
        places_(scratch.take<std::int32_t>(most_found(task))),
        factors_(scratch.take<float>(most_found(task))),
        originals_(scratch.take<bfloat16>(most_found(task))) {}

  std::int64_t segment_of(std::int64_t row) const { return group_of(task_, row); }
  std::int64_t end_of(std::int64_t group) const { return task_.groups[group].end_row; }

  void begin(const TileBlock& block, bfloat16* target) const {
    const auto* weight = static_cast<const bfloat16*>(task_.weight);
    if (task_.transposed) {
      weight += block.element * task_.outer + block.output;
      write_columns(block, target, [=](std::int64_t i, __mmask32 there) __attribute__((always_inline)) {
        return _mm512_maskz_loadu_epi16(there, weight + i * task_.outer);
      });
    } else {
      weight += block.output * task_.inner + block.element;
      write_rows(block, target, [=](std::int64_t o, std::int64_t i, __mmask32 there) __attribute__((always_inline)) {
        return _mm512_maskz_loadu_epi16(there, weight + o * task_.inner + i);
      });
    }
  }

  void edit(const TileBlock& block, std::int64_t group, bfloat16* target) {
    count_ = 0;
    if (task_.groups[group].indices == nullptr) return;
    if (task_.transposed) {
      find_in_columns(block, group);
    } else {
      find_in_rows(block, group);
    }
    const bfloat16* type = nullptr;
    for (std::int64_t i = 0; i < count_; ++i) {
      bfloat16& w = target[places_[i]];
      originals_[i] = w;
      w = Pairs::scaled(w, factor_as(factors_[i], type));
    }
  }

  void restore(bfloat16* target) const {
    for (std::int64_t i = 0; i < count_; ++i) target[places_[i]] = originals_[i];
  }

 private:
  // The rows of the weight are outputs: each goes on where the block before this left off.
  void find_in_rows(const TileBlock& block, std::int64_t group) {
    const EditGroup& edit = task_.groups[group];
    std::int32_t* cursors = cursors_ + group * cursor_rows(task_);
    for (std::int64_t o = 0; o < block.outputs; ++o) {
      const std::int32_t* begin = edit.row_entries + block.output + o;
      const std::int32_t entry = block.element == 0 ? begin[0] : cursors[o];
      const std::int64_t first = (block.output + o) * task_.inner + block.element;
      const __m256i row = _mm256_set1_epi32(static_cast<int>(o * tile_stride / 2));
      cursors[o] = find(edit, entry, begin[1], first, block.elements,
                        [=](__m256i element) { return _mm256_add_epi32(row, element); });
    }
  }

  // The rows of the weight lie along the sum, and each goes on where the panel before this left off.
  void find_in_columns(const TileBlock& block, std::int64_t group) {
    const EditGroup& edit = task_.groups[group];
    std::int32_t* cursors = cursors_ + group * cursor_rows(task_);
    for (std::int64_t i = 0; i < block.elements; ++i) {
      const std::int64_t row = block.element + i, first = row * task_.outer + block.output;
      const std::int32_t* begin = edit.row_entries + row;
      const std::int32_t entry = block.first_panel ? lower_bound(edit.indices, begin[0], begin[1], first) : cursors[row];
      const __m256i pair = _mm256_set1_epi32(static_cast<int>(i / 2 * 2 * panel_width + i % 2));
      // Twice place_of_output, as there are two elements of each output.
      cursors[row] = find(edit, entry, begin[1], first, block.outputs, [=](__m256i output) {
        const __m256i low = _mm256_slli_epi32(_mm256_and_si256(output, _mm256_set1_epi32(3)), 1);
        const __m256i high = _mm256_and_si256(output, _mm256_set1_epi32(24));
        const __m256i tile = _mm256_slli_epi32(_mm256_and_si256(output, _mm256_set1_epi32(4)), 3);
        return _mm256_add_epi32(pair, _mm256_or_si256(low, _mm256_or_si256(high, tile)));
      });
    }
  }

  // Notes the entries from `entry` on whose index lies less than `length` behind `first`, and returns the entry behind them.
  // No branch depends on the length of a short run, as CPUs cannot foresee it.
  template <class Place>
  std::int32_t find(const EditGroup& edit, std::int32_t entry, std::int32_t end, std::int64_t first,
                    std::int64_t length, Place place) {
    constexpr int most = 8;
    const __m512i from = _mm512_set1_epi64(first), behind = _mm512_set1_epi64(first + length);
    for (;;) {
      const auto there = static_cast<__mmask8>(end - entry < most ? (1u << (end - entry)) - 1 : 0xffu);
      const __m512i indices = _mm512_maskz_loadu_epi64(there, edit.indices + entry);
      const __m256i further = _mm512_cvtepi64_epi32(_mm512_sub_epi64(indices, from));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(places_ + count_), place(further));
      _mm256_storeu_ps(factors_ + count_, _mm256_maskz_loadu_ps(there, edit.factors + entry));
      const int found = _mm_popcnt_u32(_mm512_mask_cmplt_epi64_mask(there, indices, behind));
      count_ += found;
      entry += found;
      if (found < most) return entry;
    }
  }

  const EditedLinear& task_;
  std::int32_t* cursors_;  // per group and row of the weight: the entry that comes next
  std::int32_t* places_;
  float* factors_;
  bfloat16* originals_;
  std::int64_t count_ = 0;  // of the entries found in a block
};

}  // namespace

void edited_linear(const EditedLinear& task, std::int64_t begin, std::int64_t end, std::uint8_t* memory) noexcept {
  Scratch scratch(memory);
  EditedTiles weights(task, scratch);
  TileProduct<EditedTiles>(task, weights, scratch).run(begin, end);
}

}  // namespace cad_fast::CAD_FAST_TARGET
