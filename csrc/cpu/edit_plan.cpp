#include "edit_plan.h"

#include "cpu/product.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

template <class Input>
class Planner {
 public:
  explicit Planner(const EditPlan& plan)
      : plan_(plan),
        row_length_(plan.transposed ? plan.outer : plan.inner),
        per_row_(1.0 / static_cast<double>(row_length_)),
        block_elements_(elements_per_block<Steps>(plan.inner)),
        panels_(plan.panels()),
        cells_(ceil_div(plan.inner, block_elements_) * panels_) {}

  // Counts the entries of each cell, adds up, and puts each entry behind those of its cell that came before.
  void run(std::int64_t group) const {
    const std::int64_t first = plan_.offsets[group], count = plan_.offsets[group + 1] - first;
    std::int32_t* starts = plan_.starts + group * (cells_ + 1);
    std::memset(starts, 0, static_cast<std::size_t>(cells_ + 1) * sizeof *starts);
    for (std::int64_t i = first; i < first + count; ++i) ++starts[entry(plan_.indices[i]).cell];
    std::int32_t before = 0;
    for (std::int64_t cell = 0; cell <= cells_; ++cell) {
      const std::int32_t own = starts[cell];
      starts[cell] = before;
      before += own;
    }
    for (std::int64_t i = first; i < first + count; ++i) {
      const Entry own = entry(plan_.indices[i]);
      const std::int64_t at = first + starts[own.cell]++;
      plan_.places[at] = own.place;
      plan_.place_factors[at] = plan_.factors[i];
    }
    // Each start has moved to its cell's end, which is where the next cell starts.
    for (std::int64_t cell = cells_; cell > 0; --cell) starts[cell] = starts[cell - 1];
    starts[0] = 0;
  }

 private:
  using Steps = typename StepsOf<Input>::Type;
  static constexpr std::int64_t size = Steps::step_size;

  struct Entry {
    std::int64_t cell;
    std::uint16_t place;
  };
  static_assert(panel_width * block_steps * size <= 1 << 16);

  Entry entry(std::int64_t index) const {
    // Half an index keeps the quotient clear of whole numbers, so that its rounding does not matter.
    const auto row = static_cast<std::int64_t>((static_cast<double>(index) + 0.5) * per_row_);
    const std::int64_t column = index - row * row_length_;
    const std::int64_t output = plan_.transposed ? column : row;
    const std::int64_t element = plan_.transposed ? row : column;
    const std::int64_t block = element / block_elements_, within = element - block * block_elements_;
    const std::int64_t place = (within / size * panel_width + output % panel_width) * size + within % size;
    return {block * panels_ + output / panel_width, static_cast<std::uint16_t>(place)};
  }

  const EditPlan& plan_;
  std::int64_t row_length_;
  double per_row_;
  std::int64_t block_elements_;
  std::int64_t panels_;
  std::int64_t cells_;
};

template <class Input>
void run(const EditPlan& plan, std::int64_t begin, std::int64_t end) {
  const Planner<Input> planner(plan);
  for (std::int64_t group = begin; group < end; ++group) planner.run(group);
}

}  // namespace

void edit_plan(const EditPlan& plan, std::int64_t begin, std::int64_t end) noexcept {
  plan.bf16 ? run<bfloat16>(plan, begin, end) : run<float>(plan, begin, end);
}

std::int64_t edit_plan_blocks(std::int64_t inner, bool bf16) noexcept {
  const std::int64_t length = bf16 ? elements_per_block<StepsOf<bfloat16>::Type>(inner) : elements_per_block<Floats<float>>(inner);
  return ceil_div(inner, length);
}

}  // namespace cad_fast::CAD_FAST_TARGET
