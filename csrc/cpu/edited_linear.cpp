#include "edited_linear.h"

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

  EditedWeights(const EditedLinear& task, Scratch& scratch)
      : task_(task),
        cursor_rows_(task.transposed ? task.inner : block_panels * panel_width),
        cursors_(scratch.take<std::int32_t>(task.group_count * cursor_rows_)),
        places_(scratch.take<std::int32_t>(block_panels * panel_width * block_steps * Steps::step_size)),
        originals_(scratch.take<Element>(block_panels * panel_width * block_steps * Steps::step_size)) {}

  std::int64_t segment_of(std::int64_t row) const {
    std::int64_t low = 0, high = task_.group_count - 1;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (task_.groups[middle].end_row > row) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }
  std::int64_t end_of(std::int64_t group) const { return task_.groups[group].end_row; }

  Operand<Steps> edit(const Block& block, std::int64_t group, Element* packed) {
    patched_ = 0;
    if (task_.groups[group].indices != nullptr) {
      if (task_.transposed) {
        patch_columns(block, group, packed);
      } else {
        patch_rows(block, group, packed);
      }
    }
    return {packed};
  }

  void restore(Element* packed) const {
    for (std::int64_t i = 0; i < patched_; ++i) packed[places_[i]] = originals_[i];
  }

 private:
  // The rows of the weight are the outputs: those of the block, each from where the block before this left off.
  void patch_rows(const Block& block, std::int64_t group, Element* packed) {
    const EditGroup& edit = task_.groups[group];
    std::int32_t* cursors = cursors_ + group * cursor_rows_;
    for (std::int64_t i = 0; i < block.columns; ++i) {
      const std::int64_t row = block.column + i;
      const std::int32_t* begin = edit.row_entries + row;
      std::int32_t entry = block.element == 0 ? begin[0] : cursors[i];
      const std::int64_t first = row * task_.inner + block.element;
      for (; entry < begin[1] && edit.indices[entry] < first + block.elements; ++entry) {
        patch(packed, i, edit.indices[entry] - first, edit.factors[entry]);
      }
      cursors[i] = entry;
    }
  }

  // The rows of the weight lie along the sum, and a thread comes back to each of them for every block of columns.
  void patch_columns(const Block& block, std::int64_t group, Element* packed) {
    const EditGroup& edit = task_.groups[group];
    std::int32_t* cursors = cursors_ + group * cursor_rows_;
    for (std::int64_t i = 0; i < block.elements; ++i) {
      const std::int64_t row = block.element + i;
      const std::int32_t* begin = edit.row_entries + row;
      const std::int64_t first = row * task_.outer + block.column;
      std::int32_t entry = block.first_of_chunk ? lower_bound(edit.indices, begin[0], begin[1], first) : cursors[row];
      for (; entry < begin[1] && edit.indices[entry] < first + block.columns; ++entry) {
        patch(packed, edit.indices[entry] - first, i, edit.factors[entry]);
      }
      cursors[row] = entry;
    }
  }

  static std::int32_t lower_bound(const std::int64_t* indices, std::int32_t begin, std::int32_t end,
                                  std::int64_t index) {
    while (begin < end) {
      const std::int32_t middle = begin + (end - begin) / 2;
      if (indices[middle] < index) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    return begin;
  }

  void patch(Element* packed, std::int64_t output, std::int64_t element, float factor) {
    constexpr std::int64_t size = Steps::step_size;
    const std::int64_t step = output / panel_width * block_steps + element / size;
    const std::int64_t place = (step * panel_width + output % panel_width) * size + element % size;
    const Element original = packed[place];
    places_[patched_] = static_cast<std::int32_t>(place);
    originals_[patched_++] = original;
    const Input* type = nullptr;
    packed[place] = Steps::scaled(original, factor_as(factor, type));
  }

  const EditedLinear& task_;
  std::int64_t cursor_rows_;
  std::int32_t* cursors_;  // per group and row of the weight: the entry that comes next
  std::int32_t* places_;
  Element* originals_;
  std::int64_t patched_ = 0;
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
