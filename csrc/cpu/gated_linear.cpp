#include "gated_linear.h"

#include "cpu/product.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

// The same packed panels for all rows, whatever their variant.
template <class Input>
class SharedWeights {
 public:
  using Steps = typename StepsOf<Input>::Type;
  using Element = typename Steps::Element;
  static constexpr bool mixes = false;

  explicit SharedWeights(const GatedLinear& task) : rows_(task.rows) {}

  std::int64_t segment_of(std::int64_t) const { return 0; }
  std::int64_t end_of(std::int64_t) const { return rows_; }
  Operand<Steps> edit(const Block&, std::int64_t, const Element* packed) { return {packed}; }
  void restore(Element*) {}

 private:
  std::int64_t rows_;
};

// Tiles of x, multiplied by their variants' gates on the way.
class GatedRows {
 public:
  explicit GatedRows(const GatedLinear& task) : task_(task) {}

  template <class Steps, class Input>
  void pack(std::int64_t row, std::int64_t rows, std::int64_t element, std::int64_t count,
            typename Steps::Element* target, std::int64_t stride) const {
    for (std::int64_t r = row; r < row + rows; ++r, target += stride) {
      const Input* x = static_cast<const Input*>(task_.x) + r * task_.inner + element;
      const float* gates = task_.gates + r / task_.variant_rows * task_.inner + element;
      gate<Steps>(x, gates, count, target);
      if (count % Steps::step_size != 0) target[count] = 0;
    }
  }

 private:
  template <class Steps, class Input>
  static void gate(const Input* __restrict x, const float* __restrict gates, std::int64_t count,
                   typename Steps::Element* __restrict target) {
    for (std::int64_t i = 0; i < count; ++i) {
      const Input product = scale(x[i], gates[i]);
      const Input gated = gates[i] == 0 ? Input{0} : product;
      if constexpr (sizeof *target == sizeof(Input)) {
        target[i] = gated;
      } else {
        target[i] = to_float(gated);
      }
    }
  }

  const GatedLinear& task_;
};

template <class Input>
void run(const GatedLinear& task, std::int64_t begin, std::int64_t end, std::uint8_t* memory) {
  Scratch scratch(memory);
  SharedWeights<Input> weights(task);
  Product<Input, SharedWeights<Input>, GatedRows>(task, weights, scratch, GatedRows(task)).run(begin, end);
}

}  // namespace

void gated_linear(const GatedLinear& task, std::int64_t begin, std::int64_t end, std::uint8_t* scratch) noexcept {
  task.bf16 ? run<bfloat16>(task, begin, end, scratch) : run<float>(task, begin, end, scratch);
}

}  // namespace cad_fast::CAD_FAST_TARGET
