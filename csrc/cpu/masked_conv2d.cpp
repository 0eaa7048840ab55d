#include "masked_conv2d.h"

#include "bfloat16.h"
#include "bits.h"

#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

namespace cad_fast::CAD_FAST_TARGET {
namespace {

#if defined(__AVX512F__)
constexpr std::int64_t lanes = 16;
constexpr int tile_rows = 12;  // with two vectors a row: 24 of the 32 registers
#elif defined(__AVX2__)
constexpr std::int64_t lanes = 8;
constexpr int tile_rows = 6;
#else
constexpr std::int64_t lanes = 4;
constexpr int tile_rows = 6;
#endif

constexpr std::int64_t depth_block = 256;
// Not a power of two, so that the rows of a tile do not fall into the same cache sets.
constexpr std::int64_t scratch_stride = depth_block + 16;

using Vector = float __attribute__((vector_size(lanes * sizeof(float))));

Vector load_vector(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// `set` where the mask is all ones, `unset` where it is zero.
float choose(std::uint32_t mask, float set, float unset) {
  return float_of((bits_of(set) & mask) | (bits_of(unset) & ~mask));
}
bfloat16 choose(std::uint32_t mask, bfloat16 set, bfloat16 unset) {
  return static_cast<bfloat16>((set & mask) | (unset & ~mask));
}

template <class Out, class In>
Out convert(In value) {
  if constexpr (sizeof(Out) == sizeof(In)) {
    return value;
  } else {
    return to_float(value);
  }
}

// The 32 elements of a word, those whose bit is set times the factor. A branch-free loop of fixed length, which compilers
// make vector code of.
template <bool zero, class In, class Out>
void expand_word(const In* weight, std::uint32_t word, Out* expanded, float factor, std::int64_t count = word_bits) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t ablated = 0u - ((word >> i) & 1u);
    expanded[i] = convert<Out>(choose(ablated, zero ? In{} : scale(weight[i], factor), weight[i]));
  }
}

#if defined(__AVX512BW__)

void remove_in_word(const float* weight, std::uint32_t word, float* expanded) {
  const std::uint32_t kept = ~word;
  _mm512_storeu_ps(expanded, _mm512_maskz_loadu_ps(static_cast<__mmask16>(kept), weight));
  _mm512_storeu_ps(expanded + 16, _mm512_maskz_loadu_ps(static_cast<__mmask16>(kept >> 16), weight + 16));
}

void remove_in_word(const bfloat16* weight, std::uint32_t word, bfloat16* expanded) {
  _mm512_storeu_si512(expanded, _mm512_maskz_loadu_epi16(~word, weight));
}

void remove_in_word(const bfloat16* weight, std::uint32_t word, float* expanded) {
  for (int half = 0; half < 2; ++half) {
    const auto kept = static_cast<__mmask16>(~word >> (16 * half));
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight + 16 * half));
    const __m512i wide = _mm512_maskz_cvtepu16_epi32(kept, bits);
    _mm512_storeu_si512(expanded + 16 * half, _mm512_maskz_slli_epi32(kept, wide, 16));
  }
}

#else

template <class In, class Out>
void remove_in_word(const In* weight, std::uint32_t word, Out* expanded) {
  expand_word<true>(weight, word, expanded, 0.0f);
}

#endif

// `count` elements of one row, the first of them the first of a word.
template <class In, class Out>
void expand_row(const In* weight, const std::uint8_t* words, Out* expanded, std::int64_t count, float factor) {
  const bool zero = factor == 0.0f;
  std::int64_t i = 0;
  if (zero)
    for (; i + word_bits <= count; i += word_bits) remove_in_word(weight + i, load_word(words + i / 8), expanded + i);
  else
    for (; i + word_bits <= count; i += word_bits)
      expand_word<false>(weight + i, load_word(words + i / 8), expanded + i, factor);
  if (i == count) return;
  const auto tail = zero ? expand_word<true, In, Out> : expand_word<false, In, Out>;
  tail(weight + i, load_word(words + i / 8), expanded + i, factor, count - i);
}

template <class T>
void expand_weight(const ExpandWeight& job, std::int64_t begin, std::int64_t end) {
  const std::int64_t row_bytes = 4 * words_for(job.depth);
  for (std::int64_t row = begin; row < end; ++row)
    expand_row(static_cast<const T*>(job.weight) + row * job.depth, job.words + row * row_bytes,
               static_cast<T*>(job.expanded) + row * job.depth, job.depth, job.factor);
}

// One row of the patches: what one element of the kernel meets, at all positions of all images. `x` is where it begins,
// `panel` the distance from one panel's row to the next one's. A `length` other than 0 is the width of the result, known
// when compiling so that a run is one move; it must divide the panel's width.
template <std::int64_t length>
void patch_row(const Patches& job, const float* x, float* row, std::int64_t panel, std::int64_t width) {
  std::int64_t column = 0;  // within the panel
  for (std::int64_t image = 0; image < job.images; ++image, x += job.channels * job.height * job.width) {
    for (std::int64_t h = 0; h < job.out_height; ++h) {
      const float* from = x + h * job.stride_height * job.width;
      for (std::int64_t left = length ? length : job.out_width; left > 0;) {
        const std::int64_t run = length ? length : left < width - column ? left : width - column;
        if constexpr (length != 0)
          std::memcpy(row + column, from, length * sizeof *row);
        else
          for (std::int64_t i = 0; i < run; ++i) row[column + i] = from[i * job.stride_width];
        from += run * job.stride_width;
        left -= run;
        column += run;
        if (column == width) {
          column = 0;
          row += panel;
        }
      }
    }
  }
  if (column != 0)
    for (; column < width; ++column) row[column] = 0.0f;
}

using PatchRow = void(const Patches& job, const float* x, float* row, std::int64_t panel, std::int64_t width);

PatchRow* patch_row_for(const Patches& job, std::int64_t width) {
  if (job.stride_width != 1) return patch_row<0>;
  if (job.out_width == 4) return patch_row<4>;
  if (job.out_width == 8) return patch_row<8>;
  if (job.out_width == 16) return patch_row<16>;
  if (job.out_width == 32 && width == 32) return patch_row<32>;
  return patch_row<0>;
}

// Adds weight rows [depth, stride apart] times a panel to whole vectors of out.
template <int rows, int vectors>
void multiply_tile(const float* weight, const float* panel, std::int64_t width, std::int64_t depth, float* out,
                   std::int64_t out_stride) {
  Vector sum[rows][vectors];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vectors; ++v) sum[r][v] = load_vector(out + r * out_stride + v * lanes);
  for (std::int64_t k = 0; k < depth; ++k) {
    Vector x[vectors];
    for (int v = 0; v < vectors; ++v) x[v] = load_vector(panel + k * width + v * lanes);
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) sum[r][v] += weight[r * scratch_stride + k] * x[v];
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vectors; ++v) std::memcpy(out + r * out_stride + v * lanes, &sum[r][v], sizeof(Vector));
}

// The same where out has only `columns` columns: through a copy of whole vectors.
template <int rows, int vectors>
void multiply_edge(const float* weight, const float* panel, std::int64_t width, std::int64_t depth, float* out,
                   std::int64_t out_stride, std::int64_t columns) {
  if (columns >= vectors * lanes) return multiply_tile<rows, vectors>(weight, panel, width, depth, out, out_stride);
  float tile[rows][vectors * lanes] = {};
  const auto bytes = static_cast<std::size_t>(columns) * sizeof(float);
  for (int r = 0; r < rows; ++r) std::memcpy(tile[r], out + r * out_stride, bytes);
  multiply_tile<rows, vectors>(weight, panel, width, depth, tile[0], vectors * lanes);
  for (int r = 0; r < rows; ++r) std::memcpy(out + r * out_stride, tile[r], bytes);
}

// Every element is summed in the order of k, whatever tile it lies in: results do not depend on the division into tiles.
template <int rows>
void multiply_rows(const float* weight, std::int64_t count, const float* panel, std::int64_t width, std::int64_t depth,
                   float* out, std::int64_t out_stride, std::int64_t columns) {
  for (; count >= rows; count -= rows, weight += rows * scratch_stride, out += rows * out_stride) {
    for (std::int64_t c = 0; c < columns; c += 2 * lanes) {
      if (columns - c > lanes)
        multiply_edge<rows, 2>(weight, panel + c, width, depth, out + c, out_stride, columns - c);
      else
        multiply_edge<rows, 1>(weight, panel + c, width, depth, out + c, out_stride, columns - c);
    }
  }
  if constexpr (rows > 1) multiply_rows<rows / 2>(weight, count, panel, width, depth, out, out_stride, columns);
}

// The rows [row, row + count) of one variant, for the depth [k, k + depth).
template <class T>
void multiply_block(const MaskedProduct& job, std::int64_t variant, std::int64_t row, std::int64_t count,
                    std::int64_t k, std::int64_t depth, float* scratch) {
  const std::int64_t row_words = words_for(job.depth);
  const float factor = job.factors ? job.factors[variant] : 0.0f;
  for (std::int64_t r = 0; r < count; ++r)
    expand_row(static_cast<const T*>(job.weight) + (row + r) * job.depth + k,
               job.words + 4 * ((variant * job.rows + row + r) * row_words + k / word_bits),
               scratch + r * scratch_stride, depth, factor);
  const std::int64_t width = panel_width(job.positions);
  const std::int64_t panels = divide_up(job.positions, width);
  float* out = job.out + (variant * job.rows + row) * job.positions;
  if (k == 0)
    for (std::int64_t r = 0; r < count; ++r)
      for (std::int64_t p = 0; p < job.positions; ++p) out[r * job.positions + p] = job.bias ? job.bias[row + r] : 0.0f;
  for (std::int64_t p = 0; p < panels; ++p) {
    const float* panel = job.patches + ((variant * panels + p) * job.depth + k) * width;
    const std::int64_t left = job.positions - p * width;
    multiply_rows<tile_rows>(scratch, count, panel, width, depth, out + p * width, job.positions,
                             left < width ? left : width);
  }
}

// The variants run inside the blocks of the weight, so that a block is fetched once for all of them.
template <class T>
void multiply(const MaskedProduct& job, std::int64_t begin, std::int64_t end) {
  float scratch[product_block * scratch_stride];
  while (begin < end) {
    const std::int64_t row = begin / job.variants * product_block;
    const std::int64_t first = begin % job.variants;
    const std::int64_t last = job.variants - first < end - begin ? job.variants : first + end - begin;
    const std::int64_t count = job.rows - row < product_block ? job.rows - row : product_block;
    for (std::int64_t k = 0; k < job.depth; k += depth_block) {
      const std::int64_t depth = job.depth - k < depth_block ? job.depth - k : depth_block;
      for (std::int64_t v = first; v < last; ++v) multiply_block<T>(job, v, row, count, k, depth, scratch);
    }
    begin += last - first;
  }
}

}  // namespace

void masked_conv2d_weight(const ExpandWeight& job, std::int64_t begin, std::int64_t end) noexcept {
  job.bfloat16 ? expand_weight<bfloat16>(job, begin, end) : expand_weight<float>(job, begin, end);
}

void masked_conv2d_patches(const Patches& job, std::int64_t begin, std::int64_t end) noexcept {
  const std::int64_t depth = job.channels * job.kernel_height * job.kernel_width;
  const std::int64_t positions = job.images * job.out_height * job.out_width;
  const std::int64_t width = panel_width(positions);
  const std::int64_t plane = job.height * job.width;
  const auto patch_row = patch_row_for(job, width);
  for (std::int64_t step = begin; step < end; ++step) {
    const std::int64_t variant = step / job.channels;
    const std::int64_t channel = step % job.channels;
    const float* x = job.x + (variant * job.images * job.channels + channel) * plane;
    float* row = job.patches + (variant * divide_up(positions, width) * depth +
                                channel * job.kernel_height * job.kernel_width) * width;
    for (std::int64_t h = 0; h < job.kernel_height; ++h)
      for (std::int64_t w = 0; w < job.kernel_width; ++w, row += width)
        patch_row(job, x + h * job.dilation_height * job.width + w * job.dilation_width, row, depth * width, width);
  }
}

void masked_conv2d(const MaskedProduct& job, std::int64_t begin, std::int64_t end) noexcept {
  job.bfloat16 ? multiply<bfloat16>(job, begin, end) : multiply<float>(job, begin, end);
}

}  // namespace cad_fast::CAD_FAST_TARGET
