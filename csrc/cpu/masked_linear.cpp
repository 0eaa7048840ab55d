#include "masked_linear.h"

#include "cpu/product.h"
#include "cpu/masked_dot.h"
#include "cpu/masked_gemv.h"

namespace cad_fast::CAD_FAST_TARGET {
namespace {

// Up to here a variant's rows read the packed panels with what is ablated masked out; for more rows it pays to write
// the panels as the variant has them. Instruction sets without masks always do that.
#if defined(__AVX512F__)
constexpr std::int64_t most_masked_rows = 32;
#else
constexpr std::int64_t most_masked_rows = 0;
#endif

template <class Input>
class MaskedWeights {
 public:
  using Steps = typename StepsOf<Input>::Type;
  using Element = typename Steps::Element;
  using Bits = typename Steps::Bits;
  static constexpr bool mixes = false;

  MaskedWeights(const MaskedLinear& task, Scratch& scratch)
      : task_(task),
        edited_(scratch.take<Element>(block_panels * panel_width * block_steps * Steps::step_size)),
        kept_(scratch.take<Bits>(block_panels * block_steps)),
        words_(scratch.take<std::uint32_t>(2 * block_steps)) {}

  std::int64_t segment_of(std::int64_t row) const { return row / task_.variant_rows; }
  std::int64_t end_of(std::int64_t variant) const { return (variant + 1) * task_.variant_rows; }
  void restore(Element*) {}

  Operand<Steps> edit(const Block& block, std::int64_t variant, const Element* packed) {
    for (std::int64_t panel = 0; panel < block.panels(); ++panel) {
      if (task_.transposed) {
        kept_of_columns(variant, block.part(panel), kept_ + panel * block_steps);
      } else {
        kept_of_rows(variant, block.part(panel), kept_ + panel * block_steps);
      }
    }
    const Region ahead = words_of_next(block, variant);
    const Input* type = nullptr;
    const float factor = task_.factors == nullptr ? 0 : factor_as(task_.factors[variant], type);
    if (factor == 0 && task_.variant_rows <= most_masked_rows) return {packed, kept_, nullptr, ahead};
#if defined(__AVX512F__)
    if (factor == 0) return {packed, kept_, edited_, ahead};
#endif
    constexpr std::int64_t length = panel_width * Steps::step_size;
    const std::int64_t steps = ceil_div(block.elements, Steps::step_size);
    for (std::int64_t panel = 0; panel < block.panels(); ++panel) {
      for (std::int64_t i = panel * block_steps; i < panel * block_steps + steps; ++i) {
        Steps::edit_step(packed + i * length, edited_ + i * length, ~kept_[i], factor);
      }
    }
    return {edited_, nullptr, nullptr, ahead};
  }

 private:
  // Where the words lie along the sum, bits have to be turned to lie along the outputs.
  void kept_of_rows(std::int64_t variant, const Part& part, Bits* kept) const {
    const std::int64_t row_words = ceil_div(task_.inner, 32);
    const std::uint32_t* words = task_.words + (variant * task_.outer + part.output) * row_words + part.element / 32;
    const std::int64_t count = ceil_div(part.elements, 32);
    constexpr std::int64_t steps = 32 / Steps::step_size;
    transpose_words(reinterpret_cast<const std::uint8_t*>(words), 4 * row_words, part.outputs, 4 * count, words_);
    if (part.elements % Steps::step_size != 0) {
      // A zero stands for a weight behind the last element, which an infinite factor must not reach.
      const std::uint32_t there = (1u << part.elements % 32) - 1;
      for (int i = 0; i < 32; ++i) words_[32 * (count - 1) + i] &= there;
    }
    for (std::int64_t j = 0; j < count; ++j) {
      Bits turned[steps];
      Steps::turn(words_ + 32 * j, turned);
      for (const Bits ablated : turned) *kept++ = ~ablated;
    }
  }

  // The words of the next variant come from far away, a short piece of each row; turning them around would wait for them.
  Region words_of_next(const Block& block, std::int64_t variant) const {
    if (task_.transposed || end_of(variant) >= task_.rows) return {};
    const std::int64_t row_words = ceil_div(task_.inner, 32);
    const std::uint32_t* words = task_.words + ((variant + 1) * task_.outer + block.column) * row_words;
    return Region(words + block.element / 32, 4 * row_words, block.columns, 4 * ceil_div(block.elements, 32));
  }

  void kept_of_columns(std::int64_t variant, const Part& part, Bits* kept) const {
    const std::int64_t row_words = ceil_div(task_.outer, 32);
    const std::uint32_t* words =
        task_.words + (variant * task_.inner + part.element) * row_words + part.output / panel_width;
    for (std::int64_t i = 0; i < part.elements; i += Steps::step_size) {
      const std::int64_t second = i + Steps::step_size - 1;
      *kept++ = ~Steps::interleave(words[i * row_words], second < part.elements ? words[second * row_words] : 0);
    }
  }

  const MaskedLinear& task_;
  Element* edited_;
  Bits* kept_;
  std::uint32_t* words_;
};

enum class Path { dots, gemv, masked_panels, written_panels };

template <class Input>
Path path_of(const MaskedLinear& task) {
#if defined(__AVX512F__)
  if constexpr (Along<Input>::exists) {
    if (MaskedDot<Input>::suits(task)) return Path::dots;
  }
#endif
  if (task.variant_rows == 1 && !task.transposed) return Path::gemv;
  return task.factors == nullptr && task.variant_rows <= most_masked_rows ? Path::masked_panels : Path::written_panels;
}

template <class Input>
void run(const MaskedLinear& task, std::int64_t begin, std::int64_t end, std::uint8_t* memory) {
  const Path path = path_of<Input>(task);
#if defined(__AVX512F__)
  if constexpr (Along<Input>::exists) {
    if (path == Path::dots) return MaskedDot<Input>(task).run(begin, end);
  }
#endif
  if (path == Path::gemv) return masked_gemv<Input>(task, begin, end);
  Scratch scratch(memory);
  MaskedWeights<Input> weights(task, scratch);
  Product<Input, MaskedWeights<Input>>(task, weights, scratch).run(begin, end);
}

}  // namespace

void masked_linear(const MaskedLinear& task, std::int64_t begin, std::int64_t end, std::uint8_t* scratch) noexcept {
  task.bf16 ? run<bfloat16>(task, begin, end, scratch) : run<float>(task, begin, end, scratch);
}

const char* masked_linear_path(const MaskedLinear& task) noexcept {
  switch (task.bf16 ? path_of<bfloat16>(task) : path_of<float>(task)) {
    case Path::dots:
      return "masked dot products";
    case Path::gemv:
      return "one row per variant";
    case Path::masked_panels:
      return "packed panels, masked as they are read";
    case Path::written_panels:
      return "packed panels, written anew for each variant";
  }
  return "";
}

}  // namespace cad_fast::CAD_FAST_TARGET
