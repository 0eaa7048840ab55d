#include "edited_linear.h"

#include "cpu/entries.h"
#include "cpu/product.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

// Patches the packed panels in place for each group, and puts back what was there. A patched panel multiplies as fast
// as any other, and a weight whose factor is zero is exactly gone, infinite or not.
template <class Input>
class EditedWeights {
 public:
  using Steps = typename StepsOf<Input>::Type;
  using Element = typename Steps::Element;
  using Bits = typename Steps::Bits;
  static constexpr bool mixes = Steps::step_size == 1;

  EditedWeights(const EditedLinear& task, Scratch& scratch)
      : task_(task),
        cursor_rows_(cursor_rows(task)),
        cursors_(scratch.take<std::int32_t>(task.group_count * cursor_rows_)),
        places_(scratch.take<std::int32_t>(most_found(task))),
        factors_(scratch.take<float>(most_found(task))),
        originals_(scratch.take<Element>(most_found(task))),
        kept_(scratch.take<Bits>(tile_rows * block_steps)) {}

  // Groups of few rows whose edits have a plan, and remove. To patch the panels for each would take longer than to multiply; one
  // row under bits of its own takes twice as long as one without. The sums have the same order.
  std::int64_t mixed_rows(std::int64_t row, std::int64_t last) const {
    if (!task_.mixes) return 0;
    std::int64_t end = row;
    for (std::int64_t group = segment_of(row); end < last; ++group) {
      const EditGroup& edit = task_.groups[group];
      if (edit.end_row - end > most_mixed_rows || (!edit.plain() && edit.factors != nullptr)) break;
      end = edit.end_row;
    }
    return (end < last ? end : last) - row;
  }

  const Bits* keep(const Block& block, std::int64_t panel, std::int64_t row, std::int64_t rows) const {
    const std::int64_t cell = first_cell(block) + panel;
    std::int64_t group = segment_of(row);
    for (std::int64_t r = 0; r < rows; ++r) {
      while (task_.groups[group].end_row <= row + r) ++group;
      Bits* kept = kept_ + r * block_steps;
      std::memset(kept, -1, static_cast<std::size_t>(block.elements) * sizeof *kept);
      const EditGroup& edit = task_.groups[group];
      if (edit.plain()) continue;
      for (std::int64_t i = edit.starts[cell]; i < edit.starts[cell + 1]; ++i) {
        kept[edit.places[i] / panel_width] &= ~(Bits{1} << edit.places[i] % panel_width);
      }
    }
    return kept_;
  }

  std::int64_t segment_of(std::int64_t row) const { return group_of(task_, row); }
  std::int64_t end_of(std::int64_t group) const { return task_.groups[group].end_row; }

  Operand<Steps> edit(const Block& block, std::int64_t group, Element* packed) {
    count_ = 0;
    planned_ = nullptr;
    const EditGroup& edit = task_.groups[group];
    if (edit.plain()) return {packed};
    if (edit.starts != nullptr) {
      planned_ = &edit;
      planned_starts_ = edit.starts + first_cell(block);
      planned_panels_ = block.panels();
      edit.factors == nullptr ? remove_planned(packed) : scale_planned(packed);
      return {packed};
    }
    if (task_.transposed) {
      find_in_columns(block, group);
    } else {
      find_in_rows(block, group);
    }
    patch(packed);
    return {packed};
  }

  void restore(Element* packed) const {
    if (planned_ != nullptr) return restore_planned(packed);
    for (std::int64_t i = 0; i < count_; ++i) {
      fetch_ahead(packed, i);
      packed[places_[i]] = originals_[i];
    }
  }

 private:
  // A chunk may begin within a group, whose rows before it do not count.
  static constexpr std::int64_t most_mixed_rows = 3;

  std::int64_t first_cell(const Block& block) const {
    return task_.panels() * (block.element / elements_per_block<Steps>(task_.inner)) + block.column / panel_width;
  }

  // How far behind the first one the weights of one output lie in the packed panels, or those of one element of the sum.
  struct Places {
    int bits;                // the low ones of a weight's number
    std::int32_t low, high;  // the distance between neighbours by those bits, and by the ones above

    std::int32_t of(std::int32_t number) const {
      return (number >> bits) * high + (number & ((1 << bits) - 1)) * low;
    }
#if defined(__AVX2__)
    __m256i of(__m256i number) const {
      const __m256i low_bits = _mm256_and_si256(number, _mm256_set1_epi32((1 << bits) - 1));
      const __m256i high_bits = _mm256_srl_epi32(number, _mm_cvtsi32_si128(bits));
      return _mm256_add_epi32(_mm256_mullo_epi32(high_bits, _mm256_set1_epi32(high)),
                              _mm256_mullo_epi32(low_bits, _mm256_set1_epi32(low)));
    }
#endif
  };

  static constexpr std::int32_t size = Steps::step_size;
  static constexpr Places outputs = {5, size, block_steps * panel_width * size};
  static constexpr Places elements{size - 1, 1, panel_width * size};
  static_assert(panel_width == 1 << outputs.bits && size == 1 << elements.bits);

  // The rows of the weight are the outputs: those of the block, each from where the block before this left off.
  void find_in_rows(const Block& block, std::int64_t group) {
    const EditGroup& edit = task_.groups[group];
    std::int32_t* cursors = cursors_ + group * cursor_rows_;
    for (std::int64_t i = 0; i < block.columns; ++i) {
      const std::int64_t row = block.column + i;
      const std::int32_t* begin = edit.row_entries + row;
      const std::int32_t entry = block.element == 0 ? begin[0] : cursors[i];
      const std::int64_t first = row * task_.inner + block.element;
      const std::int32_t place = outputs.of(static_cast<std::int32_t>(i));
      cursors[i] = find(edit, entry, begin[1], first, block.elements, place, elements);
    }
  }

  // The rows of the weight lie along the sum, and a thread comes back to each of them for every block of columns.
  void find_in_columns(const Block& block, std::int64_t group) {
    const EditGroup& edit = task_.groups[group];
    std::int32_t* cursors = cursors_ + group * cursor_rows_;
    for (std::int64_t i = 0; i < block.elements; ++i) {
      const std::int64_t row = block.element + i;
      const std::int32_t* begin = edit.row_entries + row;
      const std::int64_t first = row * task_.outer + block.column;
      const std::int32_t entry =
          block.first_of_chunk ? lower_bound(edit.indices, begin[0], begin[1], first) : cursors[row];
      const std::int32_t place = elements.of(static_cast<std::int32_t>(i));
      cursors[row] = find(edit, entry, begin[1], first, block.columns, place, outputs);
    }
  }

  // Notes the entries from `entry` on whose index lies less than `length` behind `first`, that of the weight at `place`, and
  // returns the entry behind them. No branch depends on the length of a short run, as CPUs cannot foresee it; so those of
  // many rows are under way at once.
  std::int32_t find(const EditGroup& edit, std::int32_t entry, std::int32_t end, std::int64_t first,
                    std::int64_t length, std::int32_t place, const Places& places) {
#if defined(__AVX512F__)
    constexpr int most = 8;
    const __m512i from = _mm512_set1_epi64(first), behind = _mm512_set1_epi64(first + length);
    for (;;) {
      const auto there = static_cast<__mmask8>(end - entry < most ? (1u << (end - entry)) - 1 : 0xffu);
      const __m512i indices = _mm512_maskz_loadu_epi64(there, edit.indices + entry);
      const __m256 factors = _mm256_maskz_loadu_ps(there, edit.factors + entry);
      const __m256i further = places.of(_mm512_cvtepi64_epi32(_mm512_sub_epi64(indices, from)));
      const __m256i found_places = _mm256_add_epi32(_mm256_set1_epi32(place), further);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(places_ + count_), found_places);
      _mm256_storeu_ps(factors_ + count_, factors);
      const int found = _mm_popcnt_u32(_mm512_mask_cmplt_epi64_mask(there, indices, behind));
      count_ += found;
      entry += found;
      if (found < most) return entry;
    }
#else
    for (; entry < end && edit.indices[entry] < first + length; ++entry) {
      places_[count_] = place + places.of(static_cast<std::int32_t>(edit.indices[entry] - first));
      factors_[count_++] = edit.factors[entry];
    }
    return entry;
#endif
  }

  static constexpr std::int64_t panel_length = block_steps * panel_width * Steps::step_size;

  // Calls edit(w, entry, found) for the entries of a plan in the block: the element, the entry's number in its group, and
  // that in the block.
  template <class Edit>
  void for_planned(Element* packed, Edit edit) const {
    const std::int64_t first = planned_starts_[0];
    for (std::int64_t panel = 0; panel < planned_panels_; ++panel, packed += panel_length) {
      const std::int64_t end = planned_starts_[panel + 1];
      for (std::int64_t i = planned_starts_[panel]; i < end; ++i) edit(packed[planned_->places[i]], i, i - first);
    }
  }

  void remove_planned(Element* packed) const {
    for_planned(packed, [&](Element& w, std::int64_t, std::int64_t found) {
      originals_[found] = w;
      w = 0;
    });
  }

  void scale_planned(Element* packed) const {
    const Input* type = nullptr;
    for_planned(packed, [&](Element& w, std::int64_t entry, std::int64_t found) {
      originals_[found] = w;
      w = Steps::scaled(w, factor_as(planned_->factors[entry], type));
    });
  }

  void restore_planned(Element* packed) const {
    for_planned(packed, [&](Element& w, std::int64_t, std::int64_t found) { w = originals_[found]; });
  }

  void patch(Element* packed) {
    const Input* type = nullptr;
    for (std::int64_t i = 0; i < count_; ++i) {
      fetch_ahead(packed, i);
      Element& w = packed[places_[i]];
      originals_[i] = w;
      w = Steps::scaled(w, factor_as(factors_[i], type));
    }
  }

  // The places lie far apart, in the L2 cache.
  void fetch_ahead(const Element* packed, std::int64_t i) const {
    constexpr std::int64_t distance = 16;
    if (i + distance < count_) __builtin_prefetch(packed + places_[i + distance], 1);
  }

  const EditedLinear& task_;
  std::int64_t cursor_rows_;
  std::int32_t* cursors_;  // per group and row of the weight: the entry that comes next
  std::int32_t* places_;
  float* factors_;
  Element* originals_;
  Bits* kept_;
  std::int64_t count_ = 0;  // of the entries found in a block
  const EditGroup* planned_ = nullptr;  // whose plan has patched the block
  const std::int32_t* planned_starts_ = nullptr;  // of the block's panels
  std::int64_t planned_panels_ = 0;
};

template <class Input>
void run(const EditedLinear& task, std::int64_t begin, std::int64_t end, std::uint8_t* memory) {
  Scratch scratch(memory);
  EditedWeights<Input> weights(task, scratch);
  Product<Input, EditedWeights<Input>>(task, weights, scratch).run(begin, end);
}

}  // namespace

void edited_linear(const EditedLinear& task, std::int64_t begin, std::int64_t end, std::uint8_t* scratch) noexcept {
  task.bf16 ? run<bfloat16>(task, begin, end, scratch) : run<float>(task, begin, end, scratch);
}

}  // namespace cad_fast::CAD_FAST_TARGET
