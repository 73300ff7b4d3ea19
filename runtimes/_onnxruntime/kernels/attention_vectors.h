// Vectors of floats for each set of instructions, behind the same names.
//
// `exp2` of anything below -160 is 0 and of NaN is NaN; its relative error is below 3e-7. `larger` answers its second
// argument where either is NaN. Where `depth` is 2, what is multiplied are pairs of bfloat16 in the place of floats, and
// `fma` adds the products of both: `pair` makes them of two vectors, `narrow` of numbers side by side. Where it is 1,
// `pair` answers the first of the two and `narrow` stores as `some` does. `some` reads or writes the first `count`
// numbers; what it does not read is 0.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "processor.h"

namespace toolkit {

// Minimax on [0, 1) for the relative error of 2^f.
constexpr float kExp2[6] = {0.99999994f, 0.69315308f, 0.24015361f, 0.055826318f, 0.0089893397f, 0.0018775767f};
constexpr float kNothing = -160.0f;  // 2 to this power is no float

struct PortableVector {
  static constexpr int64_t lanes = 4, rows = 4, across = 2, depth = 1;
  typedef float F __attribute__((vector_size(16)));

  static F load(const float* from) {
    F value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  static void store(float* to, F value) { std::memcpy(to, &value, sizeof value); }
  static F some(const float* from, int64_t count) {
    F value{};
    std::memcpy(&value, from, sizeof(float) * static_cast<size_t>(count));
    return value;
  }
  static void some(float* to, F value, int64_t count) {
    std::memcpy(to, &value, sizeof(float) * static_cast<size_t>(count));
  }
  static F set(float number) { return F{number, number, number, number}; }
  static F pair(F low, F) { return low; }
  static void narrow(float* to, F value, int64_t count) { some(to, value, count); }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F larger(F a, F b) {
    for (int i = 0; i < 4; ++i) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
  }
  static F exp2(F x) {
    for (int i = 0; i < 4; ++i) x[i] = std::exp2(x[i]);
    return x;
  }
  // Lane i holds `first` + i; where that is less than `least`, minus infinity.
  static F from(F value, int64_t first, int64_t least) {
    for (int i = 0; i < 4; ++i)
      if (first + i < least) value[i] = -INFINITY;
    return value;
  }
  static F allowed(const uint8_t* from, int64_t count) {
    F value{};
    for (int i = 0; i < count; ++i) value[i] = from[i] ? 0.0f : -INFINITY;
    return value;
  }
  static void transpose(F* rows) {
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < i; ++j) {
        const float held = rows[i][j];
        rows[i][j] = rows[j][i];
        rows[j][i] = held;
      }
  }
};

#if defined(HAS_AVX2_PATH)

struct Avx2Vector {
  static constexpr int64_t lanes = 8, rows = 4, across = 3, depth = 1;
  using F = __m256;

  static AVX2_INLINE F load(const float* from) { return _mm256_loadu_ps(from); }
  static AVX2_INLINE void store(float* to, F value) { _mm256_storeu_ps(to, value); }
  static AVX2_INLINE __m256i first(int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
  }
  static AVX2_INLINE F some(const float* from, int64_t count) { return _mm256_maskload_ps(from, first(count)); }
  static AVX2_INLINE void some(float* to, F value, int64_t count) { _mm256_maskstore_ps(to, first(count), value); }
  static AVX2_INLINE F set(float number) { return _mm256_set1_ps(number); }
  static AVX2_INLINE F pair(F low, F) { return low; }
  static AVX2_INLINE void narrow(float* to, F value, int64_t count) { some(to, value, count); }
  static AVX2_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  static AVX2_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static AVX2_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static AVX2_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static AVX2_INLINE F larger(F a, F b) { return _mm256_max_ps(a, b); }
  static AVX2_INLINE F exp2(F x) {
    // Above 128 the result is infinite anyway, and there the exponent below would not fit.
    x = _mm256_min_ps(set(129.0f), _mm256_max_ps(set(kNothing), x));
    const F whole = _mm256_floor_ps(x), part = _mm256_sub_ps(x, whole);
    F value = set(kExp2[5]);
    for (int i = 4; i >= 0; --i) value = _mm256_fmadd_ps(value, part, set(kExp2[i]));
    // Two steps, so that a result below the smallest normal number is as right as one above.
    const __m256i power = _mm256_cvtps_epi32(whole), half = _mm256_srai_epi32(power, 1);
    const __m256i one = _mm256_set1_epi32(127);
    const __m256i left = _mm256_slli_epi32(_mm256_add_epi32(half, one), 23);
    const __m256i right = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(power, half), one), 23);
    return _mm256_mul_ps(_mm256_mul_ps(value, _mm256_castsi256_ps(left)), _mm256_castsi256_ps(right));
  }
  static AVX2_INLINE F from(F value, int64_t first_lane, int64_t least) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i out = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(least - first_lane)), lane);
    return _mm256_blendv_ps(value, set(-INFINITY), _mm256_castsi256_ps(out));
  }
  static AVX2_INLINE F allowed(const uint8_t* from, int64_t count) {
    uint64_t bytes = 0;
    std::memcpy(&bytes, from, static_cast<size_t>(count));
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(bytes)));
    const __m256i out = _mm256_cmpeq_epi32(wide, _mm256_setzero_si256());
    return _mm256_and_ps(_mm256_castsi256_ps(out), set(-INFINITY));
  }
  static AVX2_INLINE void transpose(F* r) {
    F t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
      for (int j = 0; j < 2; ++j) {
        u[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
        u[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
      }
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
      r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
  }
};

struct Avx512Vector {
  static constexpr int64_t lanes = 16, rows = 8, across = 3, depth = 1;
  using F = __m512;

  static AVX512_INLINE F load(const float* from) { return _mm512_loadu_ps(from); }
  static AVX512_INLINE void store(float* to, F value) { _mm512_storeu_ps(to, value); }
  static AVX512_INLINE __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }
  static AVX512_INLINE F some(const float* from, int64_t count) { return _mm512_maskz_loadu_ps(first(count), from); }
  static AVX512_INLINE void some(float* to, F value, int64_t count) { _mm512_mask_storeu_ps(to, first(count), value); }
  static AVX512_INLINE F set(float number) { return _mm512_set1_ps(number); }
  static AVX512_INLINE F pair(F low, F) { return low; }
  static AVX512_INLINE void narrow(float* to, F value, int64_t count) { some(to, value, count); }
  static AVX512_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  static AVX512_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static AVX512_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static AVX512_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static AVX512_INLINE F larger(F a, F b) { return _mm512_max_ps(a, b); }
  static AVX512_INLINE F exp2(F x) {
    x = _mm512_max_ps(set(kNothing), x);
    const F part = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    F value = set(kExp2[5]);
    for (int i = 4; i >= 0; --i) value = _mm512_fmadd_ps(value, part, set(kExp2[i]));
    return _mm512_scalef_ps(value, x);
  }
  static AVX512_INLINE F from(F value, int64_t first_lane, int64_t least) {
    const int64_t out = least - first_lane;
    const __mmask16 which = out >= 16 ? static_cast<__mmask16>(0xffff) : first(out > 0 ? out : 0);
    return _mm512_mask_mov_ps(value, which, set(-INFINITY));
  }
  static AVX512_INLINE F allowed(const uint8_t* from, int64_t count) {
    const __m128i bytes = _mm_maskz_loadu_epi8(first(count), from);
    const __mmask16 out = _mm_mask_cmpeq_epi8_mask(first(count), bytes, _mm_setzero_si128());
    return _mm512_maskz_mov_ps(out, set(-INFINITY));
  }
  static AVX512_INLINE void transpose(F* r) {
    F t[16];
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
      for (int j = 0; j < 2; ++j) {
        r[i + 2 * j] = _mm512_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
        r[i + 2 * j + 1] = _mm512_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
      }
    for (int i = 0; i < 4; ++i)
      for (int half = 0; half < 16; half += 8) {
        t[half + i] = _mm512_shuffle_f32x4(r[half + i], r[half + i + 4], 0x88);
        t[half + i + 4] = _mm512_shuffle_f32x4(r[half + i], r[half + i + 4], 0xdd);
      }
    for (int i = 0; i < 8; ++i) {
      r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
      r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    }
  }
};

#if defined(HAS_BFLOAT16_PATH)

struct Bfloat16Vector : Avx512Vector {
  static constexpr int64_t depth = 2;

  static BFLOAT16_INLINE F fma(F a, F b, F c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
  static BFLOAT16_INLINE __m512i halves(F value) {
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value));
  }
  static BFLOAT16_INLINE F pair(F low, F high) {
    return _mm512_castsi512_ps(_mm512_or_si512(halves(low), _mm512_slli_epi32(halves(high), 16)));
  }
  static BFLOAT16_INLINE void narrow(float* to, F value, int64_t count) {
    const __m256i numbers = (__m256i)_mm512_cvtneps_pbh(value);
    _mm256_mask_storeu_epi32(to, static_cast<__mmask8>((1u << (count + 1) / 2) - 1u), numbers);
  }
};

#endif

#endif

}  // namespace toolkit
