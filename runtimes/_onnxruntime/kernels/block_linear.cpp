// Operators of domain `toolkit.cpu`: Linears whose weights are int4 or int8 in blocks.
//
//   BlockLinear(x, B, scales)                  attributes K, N, bits (4 | 8), block_size
//   BlockLinearOffset(x, B, scales, offsets)   y += (sum of x over each block) * offset
//
// x float [.., K]; B uint8 [N, K / block_size, block_size * bits / 8] and scales float [N, K / block_size] as
// com.microsoft::MatMulNBits stores them with the zero point 1 << (bits - 1); offsets float [K / block_size, N].
// Activations are rounded to int8, each row in steps of 16 or 32 with a scale of their own; sums of products are
// exact integers within a step. A step of x that holds NaN or an infinity makes its whole row of y NaN.
//
// Weights are copied once, when a session opens, into tiles of 16 outputs x one step of K. A cell (one tile, one step):
//   4 bits: step / 8 lines of 64 bytes; line j, byte 4 r + i: output r, low half k = 4 j + i, high half k + step / 2
//   8 bits: step / 4 lines of 64 bytes; line j, byte 4 r + i: output r, k = 4 j + i, signed
// then 16 scales, then 16 constants that multiply the step's sum of x (the offset form only), as float or, where that
// loses nothing, as half. A block of more than 32 is several steps with the same scale.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "operators.h"
#include "processor.h"

namespace toolkit {
namespace {

constexpr int64_t kTile = 16;

struct Weights {
  int64_t K = 0, N = 0, bits = 0, block = 0;
  bool offset = false, half = false;
  int64_t step = 0, steps = 0, tiles = 0;
  size_t codes = 0, cell = 0;  // bytes
  Packed cells;

  const uint8_t* tile(int64_t index) const { return cells.get() + static_cast<size_t>(index * steps) * cell; }
};

// M rows of activations: codes [steps][M][step], scale and sum [steps][M]; sum is that of the rounded activations.
struct Rows {
  int64_t M = 0;
  int8_t* codes = nullptr;
  float* scale = nullptr;
  float* sum = nullptr;
};

using Round = void (*)(const Weights&, const float* x, const Rows&, int64_t first, int64_t last);
using Multiply = void (*)(const Weights&, const Rows&, float* y, int64_t first, int64_t last);

// The scale of a step, and what its numbers are multiplied by; `largest` is NaN where one of them is.
inline float scale_of(float largest, float* inverse) {
  constexpr float tiny = 1e-30f;  // below it 127 / largest would overflow
  *inverse = largest > tiny && largest <= FLT_MAX ? 127.0f / largest : 0.0f;
  if (!(largest <= FLT_MAX)) return std::numeric_limits<float>::quiet_NaN();
  return largest > tiny ? largest / 127.0f : 0.0f;
}

// ---- any processor ----

void round_portable(const Weights& w, const float* x, const Rows& rows, int64_t first, int64_t last) {
  for (int64_t m = first; m < last; ++m)
    for (int64_t b = 0; b < w.steps; ++b) {
      const float* from = x + m * w.K + b * w.step;
      int8_t* to = rows.codes + (b * rows.M + m) * w.step;
      float largest = 0.0f, inverse;
      bool finite = true;
      for (int64_t k = 0; k < w.step; ++k) {
        largest = std::max(largest, std::fabs(from[k]));
        finite &= std::isfinite(from[k]);
      }
      const float scale = scale_of(finite ? largest : std::numeric_limits<float>::quiet_NaN(), &inverse);
      int sum = 0;
      for (int64_t k = 0; k < w.step; ++k) {
        const float moved = finite ? std::nearbyintf(from[k] * inverse) : 0.0f;
        to[k] = static_cast<int8_t>(moved);
        sum += to[k];
      }
      rows.scale[b * rows.M + m] = scale;
      rows.sum[b * rows.M + m] = scale * static_cast<float>(sum);
    }
}

// One cell's codes as int8 [step / 4][16][4].
void unpack_portable(const Weights& w, const uint8_t* cell, int8_t* to) {
  if (w.bits == 8) {
    std::memcpy(to, cell, w.codes);
    return;
  }
  for (size_t i = 0; i < w.codes; ++i) {
    to[i] = static_cast<int8_t>(cell[i] & 15);
    to[i + w.codes] = static_cast<int8_t>(cell[i] >> 4);
  }
}

void multiply_portable(const Weights& w, const Rows& rows, float* y, int64_t first, int64_t last) {
  alignas(kLine) int8_t codes[32 * kTile];
  for (int64_t t = first; t < last; ++t)
    for (int64_t m = 0; m < rows.M; ++m) {
      float total[kTile] = {};
      const uint8_t* cell = w.tile(t);
      for (int64_t b = 0; b < w.steps; ++b, cell += w.cell) {
        unpack_portable(w, cell, codes);
        const int8_t* x = rows.codes + (b * rows.M + m) * w.step;
        int32_t dot[kTile] = {};
        for (int64_t j = 0; j < w.step / 4; ++j)
          for (int64_t r = 0; r < kTile; ++r)
            for (int64_t i = 0; i < 4; ++i) dot[r] += codes[(j * kTile + r) * 4 + i] * x[4 * j + i];
        const float* scales = reinterpret_cast<const float*>(cell + w.codes);
        const float scale = rows.scale[b * rows.M + m], sum = rows.sum[b * rows.M + m];
        for (int64_t r = 0; r < kTile; ++r) {
          const float of_sum = w.offset ? scales[kTile + r] : w.bits == 4 ? -8.0f * scales[r] : 0.0f;
          total[r] += static_cast<float>(dot[r]) * (scale * scales[r]) + sum * of_sum;
        }
      }
      std::memcpy(y + m * w.N + t * kTile, total, sizeof(float) * std::min(kTile, w.N - t * kTile));
    }
}

// ---- x86 with AVX2 ----

#if defined(HAS_AVX2_PATH)

template <int Bits, int Step, bool Offset, bool Half>
struct Cell {
  static constexpr int bits = Bits, step = Step, groups = Step / 4;
  static constexpr bool offset = Offset;
  static constexpr bool of_sum = Offset || Bits == 4;  // whether the sum of x has a part in the product
  static constexpr int codes = kTile * Step * Bits / 8;
  static constexpr int numbers = Half ? 32 : 64;  // bytes of 16 scales
  static constexpr int bytes = codes + numbers * (1 + Offset);

  static AVX2_INLINE __m256 load(const uint8_t* cell, int which, int side) {
    const uint8_t* from = cell + codes + which * numbers + side * (numbers / 2);
    if constexpr (Half) return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(from)));
    else return _mm256_load_ps(reinterpret_cast<const float*>(from));
  }
};

AVX2_INLINE __m256i line(const uint8_t* from) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(from)); }

AVX2_INLINE __m256i four(const int8_t* from) {
  int32_t value;
  std::memcpy(&value, from, 4);
  return _mm256_set1_epi32(value);
}

// 4 bits: sixteen-bit sums, which hold 8 x 2 x 15 x 127. 8 bits: |w| <= 128 and |x| <= 127, so a pair fits as well.
template <int Bits>
AVX2_INLINE __m256i add_products(__m256i sum, __m256i w, __m256i x) {
  if constexpr (Bits == 4) return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

template <int Bits>
AVX2_INLINE __m256 as_float(__m256i sum) {
  return _mm256_cvtepi32_ps(Bits == 4 ? _mm256_madd_epi16(sum, _mm256_set1_epi16(1)) : sum);
}

template <int Step>
AVX2 void round_step(const float* x, int8_t* codes, float* scale, float* sum) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256 value[Step / 8];
  // Magnitudes compared as integers: the order is the same, and NaN is above everything.
  __m256i most = _mm256_setzero_si256();
  for (int i = 0; i < Step / 8; ++i) {
    value[i] = _mm256_loadu_ps(x + 8 * i);
    most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(value[i]), magnitude));
  }
  __m128i top = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0x4e));
  top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0xb1));
  float inverse;
  *scale = scale_of(_mm_cvtss_f32(_mm_castsi128_ps(top)), &inverse);
  __m256i whole[4] = {};
  __m256i total = _mm256_setzero_si256();
  for (int i = 0; i < Step / 8; ++i) {
    whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(value[i], _mm256_set1_ps(inverse)));
    total = _mm256_add_epi32(total, whole[i]);
  }
  __m128i one = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
  one = _mm_hadd_epi32(one, one);
  one = _mm_hadd_epi32(one, one);
  *sum = *scale * static_cast<float>(_mm_cvtsi128_si32(one));
  const __m256i low = _mm256_packs_epi32(whole[0], whole[1]), high = _mm256_packs_epi32(whole[2], whole[3]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i packed = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
  if constexpr (Step == 32) _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), packed);
  else _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm256_castsi256_si128(packed));
}

template <int Step>
AVX2 void round_avx2(const Weights& w, const float* x, const Rows& rows, int64_t first, int64_t last) {
  for (int64_t m = first; m < last; ++m)
    for (int64_t b = 0; b < w.steps; ++b) {
      const int64_t at = b * rows.M + m;
      round_step<Step>(x + m * w.K + b * Step, rows.codes + at * Step, rows.scale + at, rows.sum + at);
    }
}

AVX2_INLINE void store(const Weights& w, int64_t tile, float* y, __m256 left, __m256 right) {
  if (w.N - tile * kTile >= kTile) {
    _mm256_storeu_ps(y + tile * kTile, left);
    _mm256_storeu_ps(y + tile * kTile + 8, right);
    return;
  }
  alignas(32) float values[kTile];
  _mm256_store_ps(values, left);
  _mm256_store_ps(values + 8, right);
  std::memcpy(y + tile * kTile, values, sizeof(float) * static_cast<size_t>(w.N - tile * kTile));
}

// Tiles [first, last) for one row: weights are read once, straight from their cells.
template <class C>
AVX2 void multiply_row(const Weights& w, const Rows& rows, float* y, int64_t first, int64_t last) {
  const __m256i low = _mm256_set1_epi8(15);
  for (int64_t t = first; t < last; ++t) {
    const uint8_t* cell = w.tile(t);
    __m256 left = _mm256_setzero_ps(), right = left;
    for (int64_t b = 0; b < w.steps; ++b, cell += C::bytes) {
      const int8_t* x = rows.codes + b * C::step;
      for (int i = 0; i < 4; ++i) _mm_prefetch(reinterpret_cast<const char*>(cell + 2048 + 64 * i), _MM_HINT_T0);
      __m256i c0 = _mm256_setzero_si256(), c1 = c0;
      if constexpr (C::bits == 8) {
#pragma GCC unroll 8
        for (int j = 0; j < C::groups; ++j) {
          const __m256i v = four(x + 4 * j);
          c0 = add_products<8>(c0, line(cell + 64 * j), v);
          c1 = add_products<8>(c1, line(cell + 64 * j + 32), v);
        }
      } else {
#pragma GCC unroll 4
        for (int j = 0; j < C::groups / 2; ++j) {
          const __m256i w0 = line(cell + 64 * j), w1 = line(cell + 64 * j + 32);
          const __m256i v0 = four(x + 4 * j), v1 = four(x + C::step / 2 + 4 * j);
          const __m256i p0 = _mm256_maddubs_epi16(_mm256_and_si256(w0, low), v0);
          const __m256i p1 = _mm256_maddubs_epi16(_mm256_and_si256(w1, low), v0);
          const __m256i q0 = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(w0, 4), low), v1);
          const __m256i q1 = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(w1, 4), low), v1);
          c0 = _mm256_add_epi16(c0, _mm256_add_epi16(p0, q0));
          c1 = _mm256_add_epi16(c1, _mm256_add_epi16(p1, q1));
        }
      }
      const __m256 scale = _mm256_set1_ps(rows.scale[b]);
      __m256 g0 = as_float<C::bits>(c0), g1 = as_float<C::bits>(c1);
      if constexpr (C::bits == 4 && !C::offset) {
        const __m256 middle = _mm256_set1_ps(-8.0f * rows.sum[b]);
        g0 = _mm256_fmadd_ps(g0, scale, middle);
        g1 = _mm256_fmadd_ps(g1, scale, middle);
      } else {
        g0 = _mm256_mul_ps(g0, scale);
        g1 = _mm256_mul_ps(g1, scale);
      }
      left = _mm256_fmadd_ps(g0, C::load(cell, 0, 0), left);
      right = _mm256_fmadd_ps(g1, C::load(cell, 0, 1), right);
      if constexpr (C::offset) {
        const __m256 sum = _mm256_set1_ps(rows.sum[b]);
        left = _mm256_fmadd_ps(sum, C::load(cell, 1, 0), left);
        right = _mm256_fmadd_ps(sum, C::load(cell, 1, 1), right);
      }
    }
    store(w, t, y, left, right);
  }
}

// Adds one step of one row to its 16 sums. `terms`: 16 scales, then 16 factors of the sum of x.
template <class C>
AVX2_INLINE void add_step(float* sums, float scale_of_x, float sum_of_x, __m256i c0, __m256i c1, const float* terms) {
  const __m256 scale = _mm256_set1_ps(scale_of_x);
  __m256 left = _mm256_load_ps(sums), right = _mm256_load_ps(sums + 8);
  left = _mm256_fmadd_ps(as_float<C::bits>(c0), _mm256_mul_ps(_mm256_load_ps(terms), scale), left);
  right = _mm256_fmadd_ps(as_float<C::bits>(c1), _mm256_mul_ps(_mm256_load_ps(terms + 8), scale), right);
  if constexpr (C::of_sum) {
    const __m256 sum = _mm256_set1_ps(sum_of_x);
    left = _mm256_fmadd_ps(sum, _mm256_load_ps(terms + 16), left);
    right = _mm256_fmadd_ps(sum, _mm256_load_ps(terms + 24), right);
  }
  _mm256_store_ps(sums, left);
  _mm256_store_ps(sums + 8, right);
}

// Four rows at once keep eight sums in registers. They have names because compilers spill small arrays of vectors.
template <class C>
AVX2_INLINE void add_four(const uint8_t* w, const int8_t* x, const float* scale, const float* sum, const float* terms,
                          float* sums) {
  __m256i a0 = _mm256_setzero_si256(), a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0, d1 = a0;
#pragma GCC unroll 8
  for (int j = 0; j < C::groups; ++j) {
    const __m256i w0 = line(w + 64 * j), w1 = line(w + 64 * j + 32);
    __m256i v = four(x + 4 * j);
    a0 = add_products<C::bits>(a0, w0, v);
    a1 = add_products<C::bits>(a1, w1, v);
    v = four(x + C::step + 4 * j);
    b0 = add_products<C::bits>(b0, w0, v);
    b1 = add_products<C::bits>(b1, w1, v);
    v = four(x + 2 * C::step + 4 * j);
    c0 = add_products<C::bits>(c0, w0, v);
    c1 = add_products<C::bits>(c1, w1, v);
    v = four(x + 3 * C::step + 4 * j);
    d0 = add_products<C::bits>(d0, w0, v);
    d1 = add_products<C::bits>(d1, w1, v);
    // Keeps the steps in this order; gcc otherwise computes all products first and runs out of registers.
    asm volatile("" : "+x"(a0), "+x"(a1), "+x"(b0), "+x"(b1), "+x"(c0), "+x"(c1), "+x"(d0), "+x"(d1));
  }
  add_step<C>(sums, scale[0], sum[0], a0, a1, terms);
  add_step<C>(sums + 16, scale[1], sum[1], b0, b1, terms);
  add_step<C>(sums + 32, scale[2], sum[2], c0, c1, terms);
  add_step<C>(sums + 48, scale[3], sum[3], d0, d1, terms);
}

template <class C>
AVX2_INLINE void add_one(const uint8_t* w, const int8_t* x, const float* scale, const float* sum, const float* terms,
                         float* sums) {
  __m256i a0 = _mm256_setzero_si256(), a1 = a0;
#pragma GCC unroll 8
  for (int j = 0; j < C::groups; ++j) {
    const __m256i v = four(x + 4 * j);
    a0 = add_products<C::bits>(a0, line(w + 64 * j), v);
    a1 = add_products<C::bits>(a1, line(w + 64 * j + 32), v);
  }
  add_step<C>(sums, scale[0], sum[0], a0, a1, terms);
}

// A cell's codes as bytes, in `bytes` where they must be taken apart, and its `terms`.
template <class C>
AVX2_INLINE const uint8_t* open_cell(const uint8_t* cell, uint8_t* bytes, float* terms) {
  for (int side = 0; side < 2; ++side) {
    const __m256 scale = C::load(cell, 0, side);
    _mm256_store_ps(terms + 8 * side, scale);
    if constexpr (C::offset) _mm256_store_ps(terms + 16 + 8 * side, C::load(cell, 1, side));
    else if constexpr (C::of_sum) _mm256_store_ps(terms + 16 + 8 * side, _mm256_mul_ps(scale, _mm256_set1_ps(-8.0f)));
  }
  if constexpr (C::bits == 8) return cell;
  const __m256i low = _mm256_set1_epi8(15);
  for (int i = 0; i < C::codes; i += 32) {
    const __m256i pair = line(cell + i);
    _mm256_store_si256(reinterpret_cast<__m256i*>(bytes + i), _mm256_and_si256(pair, low));
    _mm256_store_si256(reinterpret_cast<__m256i*>(bytes + C::codes + i),
                       _mm256_and_si256(_mm256_srli_epi16(pair, 4), low));
  }
  return bytes;
}

// Tiles [first, last) for many rows: each cell is taken apart once for as many rows as the first-level cache holds.
template <class C>
AVX2 void multiply_rows(const Weights& w, const Rows& rows, float* y, int64_t first, int64_t last) {
  constexpr int64_t most = 128;
  alignas(kLine) float sums[most * kTile];
  alignas(kLine) uint8_t bytes[C::step * kTile];
  alignas(kLine) float terms[2 * kTile];
  for (int64_t t = first; t < last; ++t)
    for (int64_t from = 0; from < rows.M; from += most) {
      const int64_t to = std::min(from + most, rows.M);
      const uint8_t* cell = w.tile(t);
      std::memset(sums, 0, sizeof(float) * static_cast<size_t>((to - from) * kTile));
      for (int64_t b = 0; b < w.steps; ++b, cell += C::bytes) {
        const uint8_t* codes = open_cell<C>(cell, bytes, terms);
        const int8_t* x = rows.codes + b * rows.M * C::step;
        const float *scale = rows.scale + b * rows.M, *sum = rows.sum + b * rows.M;
        int64_t m = from;
        for (; m + 4 <= to; m += 4)
          add_four<C>(codes, x + m * C::step, scale + m, sum + m, terms, sums + (m - from) * kTile);
        for (; m < to; ++m)
          add_one<C>(codes, x + m * C::step, scale + m, sum + m, terms, sums + (m - from) * kTile);
      }
      for (int64_t m = from; m < to; ++m) {
        const float* done = sums + (m - from) * kTile;
        store(w, t, y + m * w.N, _mm256_load_ps(done), _mm256_load_ps(done + 8));
      }
    }
}

template <int Bits, int Step, bool Offset, bool Half>
AVX2 void multiply_avx2(const Weights& w, const Rows& rows, float* y, int64_t first, int64_t last) {
  using C = Cell<Bits, Step, Offset, Half>;
  if (rows.M == 1) multiply_row<C>(w, rows, y, first, last);
  else multiply_rows<C>(w, rows, y, first, last);
}

template <int Bits, int Step>
Multiply pick(const Weights& w) {
  if (w.offset) return w.half ? multiply_avx2<Bits, Step, true, true> : multiply_avx2<Bits, Step, true, false>;
  return w.half ? multiply_avx2<Bits, Step, false, true> : multiply_avx2<Bits, Step, false, false>;
}

AVX2 uint16_t half_of(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
AVX2 float float_of(uint16_t half) { return _cvtsh_ss(half); }

// Whether as a half a number stays what it is, up to the rounding that float arithmetic of `size` did already.
AVX2 bool keeps(float value, float size) {
  return std::fabs(float_of(half_of(value)) - value) <= size * (2 * FLT_EPSILON);
}

#endif
struct Kernels {
  Round round = round_portable;
  Multiply multiply = multiply_portable;
};

Kernels kernels_for(const Weights& w, bool avx2) {
  Kernels made;
#if defined(HAS_AVX2_PATH)
  if (avx2) {
    made.round = w.step == 32 ? round_avx2<32> : round_avx2<16>;
    if (w.bits == 4) made.multiply = w.step == 32 ? pick<4, 32>(w) : pick<4, 16>(w);
    else made.multiply = w.step == 32 ? pick<8, 32>(w) : pick<8, 16>(w);
  }
#else
  (void)w, (void)avx2;
#endif
  return made;
}

// ---- packing ----

struct Source {
  const uint8_t* codes;
  const float* scales;
  const float* offsets;  // null in the plain form
};

// What multiplies the sum of x where it is stored: the codes' zero point is folded in.
inline float of_sum(const Weights& w, const Source& from, int64_t n, int64_t block) {
  const float middle = w.bits == 4 ? 8.0f * from.scales[n * (w.K / w.block) + block] : 0.0f;
  return from.offsets[block * w.N + n] - middle;
}

bool fits_half(const Weights& w, const Source& from, bool avx2) {
#if defined(HAS_AVX2_PATH)
  if (!avx2) return false;
  const int64_t blocks = w.K / w.block;
  for (int64_t n = 0; n < w.N; ++n)
    for (int64_t b = 0; b < blocks; ++b) {
      const float scale = from.scales[n * blocks + b];
      if (!keeps(scale, 0.0f)) return false;
      if (w.offset && !keeps(of_sum(w, from, n, b), 8.0f * std::fabs(scale) + std::fabs(of_sum(w, from, n, b))))
        return false;
    }
  return true;
#else
  (void)w, (void)from, (void)avx2;
  return false;
#endif
}

void put_number(const Weights& w, uint8_t* numbers, int64_t row, float value) {
#if defined(HAS_AVX2_PATH)
  if (w.half) {
    const uint16_t half = half_of(value);
    std::memcpy(numbers + 2 * row, &half, 2);
    return;
  }
#else
  (void)w;
#endif
  std::memcpy(numbers + 4 * row, &value, 4);
}

// One output's codes of one step, at `from`, into its lanes of the cell.
void put_codes(const Weights& w, uint8_t* cell, int64_t row, const uint8_t* from) {
  if (w.bits == 8) {
    for (int64_t k = 0; k < w.step; ++k) cell[(k / 4 * kTile + row) * 4 + k % 4] = from[k] ^ 128;
    return;
  }
  const int64_t apart = w.step / 2;
  for (int64_t k = 0; k < apart; ++k) {
    const int shift = k % 2 ? 4 : 0;
    const int low = from[k / 2] >> shift & 15, high = from[(k + apart) / 2] >> shift & 15;
    cell[(k / 4 * kTile + row) * 4 + k % 4] = static_cast<uint8_t>(low | high << 4);
  }
}

void pack_tile(const Weights& w, const Source& from, int64_t tile, uint8_t* cells) {
  const int64_t blocks = w.K / w.block, per_block = w.block / w.step;
  const size_t numbers = w.half ? 32 : 64, step_bytes = static_cast<size_t>(w.step * w.bits / 8);
  std::memset(cells, 0, static_cast<size_t>(w.steps) * w.cell);
  for (int64_t row = 0; row < std::min(kTile, w.N - tile * kTile); ++row) {
    const int64_t n = tile * kTile + row;
    for (int64_t b = 0; b < w.steps; ++b) {
      uint8_t* cell = cells + static_cast<size_t>(b) * w.cell;
      put_codes(w, cell, row, from.codes + static_cast<size_t>(n * w.steps + b) * step_bytes);
      put_number(w, cell + w.codes, row, from.scales[n * blocks + b / per_block]);
      if (w.offset) put_number(w, cell + w.codes + numbers, row, of_sum(w, from, n, b / per_block));
    }
  }
}

void pack(Weights& w, const Source& from, bool avx2) {
  w.step = w.block == 16 ? 16 : 32;
  w.steps = w.K / w.step;
  w.tiles = (w.N + kTile - 1) / kTile;
  w.half = fits_half(w, from, avx2);
  w.codes = static_cast<size_t>(kTile * w.step * w.bits / 8);
  w.cell = w.codes + (w.half ? 32u : 64u) * (w.offset ? 2u : 1u);
  const size_t tile_bytes = static_cast<size_t>(w.steps) * w.cell;
  w.cells = room_for_weights(static_cast<size_t>(w.tiles) * tile_bytes);
  for (int64_t t = 0; t < w.tiles; ++t) pack_tile(w, from, t, w.cells.get() + static_cast<size_t>(t) * tile_bytes);
}
struct Kernel {
  Api api;
  Weights weights;
  Kernels kernels;
};

void check(const Weights& w) {
  constexpr int64_t most = int64_t{1} << 31;
  const bool power = w.block >= 16 && (w.block & (w.block - 1)) == 0;
  if ((w.bits != 4 && w.bits != 8) || !power) throw std::invalid_argument("bits must be 4 or 8, block_size 16, 32, ..");
  if (w.K < 1 || w.N < 1 || w.K > most || w.N > most || w.K % w.block != 0)
    throw std::invalid_argument("K and N must be positive, K a multiple of block_size");
}

Status create(const Op* op, Api api, const void* info, void** made) {
  return guarded(api, [&] {
    auto kernel = std::make_unique<Kernel>();
    kernel->api = api;
    Weights& w = kernel->weights;
    w.K = attribute(api, info, "K");
    w.N = attribute(api, info, "N");
    w.bits = attribute(api, info, "bits");
    w.block = attribute(api, info, "block_size");
    w.offset = op->variant == 1;
    check(w);
    const int64_t scales = w.N * (w.K / w.block);
    std::vector<Range> read;
    Source from{};
    from.codes = static_cast<const uint8_t*>(constant(api, info, 1, kUint8, w.N * (w.K * w.bits / 8), read));
    from.scales = static_cast<const float*>(constant(api, info, 2, kFloat, scales, read));
    if (w.offset) from.offsets = static_cast<const float*>(constant(api, info, 3, kFloat, scales, read));
    const bool avx2 = instructions() >= kAvx2;
    pack(w, from, avx2);
    kernel->kernels = kernels_for(w, avx2);
    for (const Range& range : read) give_back(range);
    *made = kernel.release();
  });
}

Rows rows_of(const Weights& w, int64_t M) {
  const size_t numbers = static_cast<size_t>(w.steps * M) * sizeof(float), codes = static_cast<size_t>(w.K * M);
  uint8_t* room = scratch(codes + 2 * numbers);
  float* scale = reinterpret_cast<float*>(room + codes);  // codes are a multiple of 16 bytes
  return {M, reinterpret_cast<int8_t*>(room), scale, scale + w.steps * M};
}

Status compute(void* opened, void* context) {
  const Kernel& kernel = *static_cast<Kernel*>(opened);
  const Api api = kernel.api;
  return guarded(api, [&] {
    const Weights& w = kernel.weights;
    const void* input = nullptr;
    call(api, kInput, static_cast<const void*>(context), size_t{0}, &input);
    std::vector<int64_t> sizes = Shape(api, input).dimensions();
    if (sizes.empty() || sizes.back() != w.K)
      throw std::invalid_argument("the last dimension of x must be " + std::to_string(w.K));
    int64_t M = 1;
    for (size_t i = 0; i + 1 < sizes.size(); ++i) M *= sizes[i];
    sizes.back() = w.N;
    void* output = nullptr;
    call(api, kOutput, context, size_t{0}, static_cast<const int64_t*>(sizes.data()), sizes.size(), &output);
    if (M == 0) return;
    const float* x = static_cast<float*>(data_of(api, input));
    float* y = static_cast<float*>(data_of(api, output));
    const Rows rows = rows_of(w, M);
    int64_t pieces = chunks_of(M * w.K, 16384, M);
    in_pieces(api, context, pieces, [&](size_t i) {
      kernel.kernels.round(w, x, rows, cut(M, i, pieces), cut(M, i + 1, pieces));
    });
    pieces = chunks_of(w.tiles * w.steps * static_cast<int64_t>(w.cell) * M, 32768, w.tiles);
    in_pieces(api, context, pieces, [&](size_t i) {
      kernel.kernels.multiply(w, rows, y, cut(w.tiles, i, pieces), cut(w.tiles, i + 1, pieces));
    });
  });
}
Op op_of(bool offset) {
  Op op = bare_op<Kernel>(offset ? 1 : 0, create, compute);
  op.name = [](const Op* self) { return self->variant == 1 ? "BlockLinearOffset" : "BlockLinear"; };
  op.input_type = [](const Op*, size_t index) { return index == 1 ? kUint8 : kFloat; };
  op.inputs = [](const Op* self) -> size_t { return self->variant == 1 ? 4 : 3; };
  return op;
}

}  // namespace

std::vector<const Op*> block_linear_operators() {
  static const Op plain = op_of(false), offset = op_of(true);
  return {&plain, &offset};
}

}  // namespace toolkit
