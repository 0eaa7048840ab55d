// Few rows per variant, on AVX-512: dot products of rows of x with rows of the weight as they lie. Bits and elements run
// along the same dimension, so that a word masks a load and nothing has to be packed or turned around.
#pragma once

#include "cpu/simd.h"
#include "masked_linear.h"

#if defined(__AVX512F__)

namespace cad_fast::CAD_FAST_TARGET {
namespace {

// A vector of elements along the sum, and the mask of those to keep.
template <class Input>
struct Along {
  static constexpr bool exists = false;
};

template <>
struct Along<float> {
  static constexpr bool exists = true;
  using Mask = __mmask16;
  static constexpr int width = 16;
  // Compilers take the way through a general register, which occupies the ports of the multiplications for longer.
  static Mask load_mask(const std::uint8_t* address) {
    Mask mask;
    asm("kmovw %1, %0" : "=k"(mask) : "m"(*reinterpret_cast<const Mask*>(address)));
    return mask;
  }
  static Vec load_kept(const float* address, Mask keep) { return _mm512_maskz_loadu_ps(keep, address); }
  static Vec load_all(const float* address) { return _mm512_loadu_ps(address); }
  static Vec add_product(Vec x, Vec w, Vec sum) { return _mm512_fmadd_ps(x, w, sum); }
  static Vec add_kept(Vec x, Vec w, Vec sum, Mask keep) { return _mm512_mask3_fmadd_ps(x, w, sum, keep); }
};

#if defined(__AVX512BF16__)
template <>
struct Along<bfloat16> {
  static constexpr bool exists = true;
  using Mask = __mmask32;
  static constexpr int width = 32;
  static Mask load_mask(const std::uint8_t* address) {
    Mask mask;
    asm("kmovd %1, %0" : "=k"(mask) : "m"(*reinterpret_cast<const Mask*>(address)));
    return mask;
  }
  static Vec load_kept(const bfloat16* address, Mask keep) {
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(keep, address));
  }
  static Vec load_all(const bfloat16* address) { return _mm512_loadu_ps(address); }
  static Vec add_product(Vec x, Vec w, Vec sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }
  static Vec add_kept(Vec x, Vec w, Vec sum, Mask keep) {
    return add_product(x, _mm512_castsi512_ps(_mm512_maskz_mov_epi16(keep, _mm512_castps_si512(w))), sum);
  }
};
#endif

// Words of one row of the weight that are turned into masks at a time: one vector of them.
constexpr int dot_words = 16;

// The sums over the lanes of 16 vectors.
Vec sums_of(const Vec* v) {
  Vec pair[8], quad[4], oct[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    pair[i] = add(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pair[2 * i]), b = _mm512_castps_pd(pair[2 * i + 1]);
    quad[i] = add(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const Vec a = quad[2 * i], b = quad[2 * i + 1];
    oct[i] = add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  return add(_mm512_shuffle_f32x4(oct[0], oct[1], 0x88), _mm512_shuffle_f32x4(oct[0], oct[1], 0xdd));
}

// Rows of x that lie x_stride elements apart, and rows of the weight that follow each other. With several variants there
// is one row of x for each.
template <class Input>
struct Dot {
  const Input* x;
  const Input* weight;
  const std::uint32_t* words;  // of the first variant and output
  std::int64_t inner;
  std::int64_t variant_words;  // from one variant's words to the next one's
};

template <class Input, int outputs, int variants, int rows>
class DotTile {
 public:
  static_assert(variants == 1 || rows == 1);
  static constexpr int columns = variants * rows;
  static constexpr int sums = outputs * columns;

  // result[c * outputs + o].
  static void run(const Dot<Input>& task, float* result) {
    Vec sum[sums];  // at constant places only, or it would not stay in registers
#pragma GCC unroll 32
    for (int i = 0; i < sums; ++i) sum[i] = zero();
    const std::int64_t row_words = ceil_div(task.inner, 32);
    for (std::int64_t word = 0; word < row_words; word += dot_words) {
      alignas(64) std::uint32_t keep[outputs * variants][dot_words];
      invert_words(task, word, row_words - word, keep);
      const std::int64_t first = 32 * word;
      const std::int64_t left = task.inner - first;
      const std::int64_t count = left < 32 * dot_words ? left : 32 * dot_words;
      std::int64_t i = 0;
      for (; i + Part::width <= count; i += Part::width) add_vector<false>(task, first, i, Mask(-1), keep, sum);
      if (i < count) add_vector<true>(task, first, i, Mask((std::uint64_t{1} << (count - i)) - 1), keep, sum);
    }
    Vec padded[(sums + 15) / 16 * 16];
#pragma GCC unroll 32
    for (int i = 0; i < (sums + 15) / 16 * 16; ++i) padded[i] = i < sums ? sum[i] : zero();
    for (int i = 0; i < sums; i += 16) store(result + i, sums_of(padded + i));
  }

 private:
  using Part = Along<Input>;
  using Mask = typename Part::Mask;

  static void invert_words(const Dot<Input>& task, std::int64_t word, std::int64_t left,
                           std::uint32_t (&keep)[outputs * variants][dot_words]) {
    const std::int64_t row_words = ceil_div(task.inner, 32);
    const auto there = static_cast<__mmask16>(left < dot_words ? (1u << left) - 1 : 0xffffu);
    const __m512i ones = _mm512_set1_epi32(-1);
#pragma GCC unroll 4
    for (int v = 0; v < variants; ++v) {
#pragma GCC unroll 4
      for (int o = 0; o < outputs; ++o) {
        const std::uint32_t* words = task.words + v * task.variant_words + o * row_words + word;
        // The next outputs' words follow; each is used once, and no CPU foresees so many short rows.
        __builtin_prefetch(words + outputs * row_words, 0, 2);
        const __m512i ablated = _mm512_maskz_loadu_epi32(there, words);
        _mm512_store_si512(keep[o * variants + v], _mm512_xor_si512(ablated, ones));
      }
    }
  }

  template <bool tail>
  __attribute__((always_inline)) static void add_vector(const Dot<Input>& task, std::int64_t first, std::int64_t i, Mask there,
                         const std::uint32_t (&keep)[outputs * variants][dot_words], Vec (&sum)[sums]) {
    const auto kept = [&](int row) {
      const Mask mask = Part::load_mask(reinterpret_cast<const std::uint8_t*>(keep[row]) + i / 8);
      return static_cast<Mask>(tail ? mask & there : mask);
    };
    const Input* weight = task.weight + first + i;
    const Input* x = task.x + first + i;
    Vec w[outputs];
#pragma GCC unroll 4
    for (int o = 0; o < outputs; ++o) {
      const Input* address = weight + o * task.inner;
      if constexpr (variants == 1) {
        w[o] = Part::load_kept(address, kept(o));
      } else {
        w[o] = tail ? Part::load_kept(address, there) : Part::load_all(address);
      }
    }
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) {
      const Input* address = x + c * task.inner;
      const Vec own = tail ? Part::load_kept(address, there) : Part::load_all(address);
#pragma GCC unroll 4
      for (int o = 0; o < outputs; ++o) {
        Vec& s = sum[c * outputs + o];
        s = variants == 1 ? Part::add_product(own, w[o], s) : Part::add_kept(own, w[o], s, kept(o * variants + c));
      }
    }
  }
};

// Tiles: the weight's rows share a load of x, and the rows of x a (masked) load of the weight.
constexpr int dot_outputs = 4;
constexpr int dot_variants = 4;
constexpr int dot_rows = 6;

template <class Input, int outputs, int variants, int rows>
void dot_tile_of(int columns, const Dot<Input>& task, float* result) {
  if (columns == variants * rows) return DotTile<Input, outputs, variants, rows>::run(task, result);
  if constexpr (rows > 1) return dot_tile_of<Input, outputs, 1, rows - 1>(columns, task, result);
  if constexpr (variants > 1) return dot_tile_of<Input, outputs, variants - 1, 1>(columns, task, result);
}

// Outputs of the weight that stay in half of a core's L2 cache while the rows go by.
[[maybe_unused]] static std::int64_t dot_block(std::int64_t row_bytes) {
  const std::int64_t most = (std::int64_t{1} << 19) / (row_bytes < 1 ? 1 : row_bytes) / dot_outputs * dot_outputs;
  return most < dot_outputs ? dot_outputs : most;
}

template <class Input>
class MaskedDot {
 public:
  // Panels win with more rows, which share what it costs to pack them and to turn their bits around; the more so the
  // shorter the sums are, as the lanes of each have to be added up here. Pairs halve the number of vectors in a sum.
  static bool suits(const MaskedLinear& task) {
    std::int64_t most_rows = task.inner < 512 ? 4 : 8;
    if (Along<Input>::width == 32) most_rows = task.inner < 1024 ? 1 : task.inner < 2048 ? 4 : 16;
    return !task.transposed && task.factors == nullptr && task.variant_rows <= most_rows;
  }

  explicit MaskedDot(const MaskedLinear& task) : task_(task), row_words_(ceil_div(task.inner, 32)) {}

  // The units [begin, end), as Product::run has them.
  void run(std::int64_t begin, std::int64_t end) const {
    const std::int64_t panels = task_.panels();
    const std::int64_t block = dot_block(task_.inner * static_cast<std::int64_t>(sizeof(Input)));
    while (begin < end) {
      const std::int64_t chunk = begin / panels, panel = begin % panels;
      const std::int64_t count = end - begin < panels - panel ? end - begin : panels - panel;
      const std::int64_t last = (panel + count) * panel_width < task_.outer ? (panel + count) * panel_width : task_.outer;
      for (std::int64_t output = panel * panel_width; output < last; output += block) {
        const std::int64_t outputs = output + block < last ? block : last - output;
        run_block(output, outputs, task_.first_row(chunk), task_.first_row(chunk + 1));
      }
      begin += count;
    }
  }

 private:
  void run_block(std::int64_t output, std::int64_t outputs, std::int64_t row, std::int64_t last) const {
    while (row < last) {
      // Rows of one variant, or single rows of several.
      const std::int64_t variant = row / task_.variant_rows;
      const std::int64_t end = task_.variant_rows == 1 ? last : (variant + 1) * task_.variant_rows;
      const std::int64_t left = (end < last ? end : last) - row;
      const std::int64_t most = task_.variant_rows == 1 ? dot_variants : dot_rows;
      // Rows in tiles of nearly equal height: a last row alone would be as dear as several.
      const std::int64_t tiles = ceil_div(left, most);
      const std::int64_t columns = task_.variant_rows == 1 ? (left < most ? left : most) : ceil_div(left, tiles);
      for (std::int64_t o = 0; o < outputs; o += dot_outputs) {
        run_tile(output + o, outputs - o, row, static_cast<int>(columns));
      }
      row += columns;
    }
  }

  void run_tile(std::int64_t output, std::int64_t outputs, std::int64_t row, int columns) const {
    const std::int64_t variant = row / task_.variant_rows;
    Dot<Input> dot;
    dot.x = static_cast<const Input*>(task_.x) + row * task_.inner;
    dot.weight = static_cast<const Input*>(task_.weight) + output * task_.inner;
    dot.words = task_.words + (variant * task_.outer + output) * row_words_;
    dot.inner = task_.inner;
    dot.variant_words = task_.outer * row_words_;
    alignas(64) float result[32];
    if (outputs >= dot_outputs) {
      multiply<dot_outputs>(columns, dot, result);
      finish(output, dot_outputs, row, columns, result);
      return;
    }
    for (std::int64_t o = 0; o < outputs; ++o, dot.weight += task_.inner, dot.words += row_words_) {
      multiply<1>(columns, dot, result);
      finish(output + o, 1, row, columns, result);
    }
  }

  template <int outputs>
  void multiply(int columns, const Dot<Input>& dot, float* result) const {
    if (task_.variant_rows == 1) {
      dot_tile_of<Input, outputs, dot_variants, 1>(columns, dot, result);
    } else {
      dot_tile_of<Input, outputs, 1, dot_rows>(columns, dot, result);
    }
  }

  void finish(std::int64_t output, int outputs, std::int64_t row, int columns, const float* result) const {
    const auto* bias = static_cast<const Input*>(task_.bias);
    for (int c = 0; c < columns; ++c) {
      auto* y = static_cast<Input*>(task_.y) + (row + c) * task_.outer + output;
      for (int o = 0; o < outputs; ++o, ++result) {
        store_as(bias == nullptr ? *result : *result + to_float(bias[output + o]), y + o);
      }
    }
  }

  const MaskedLinear& task_;
  std::int64_t row_words_;
};

}  // namespace
}  // namespace cad_fast::CAD_FAST_TARGET

#endif
