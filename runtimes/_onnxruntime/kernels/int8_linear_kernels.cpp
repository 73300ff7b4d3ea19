// The int8 Linear's arithmetic: for any processor, and for those with AVX512-VNNI.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "activation_vectors.h"
#include "int8_linear.h"
#include "processor.h"

namespace toolkit {
namespace {

inline uint8_t rounded(float value, int32_t zero_point) {
  const float low = static_cast<float>(-zero_point), high = static_cast<float>(255 - zero_point);
  const float kept = value > low ? std::min(value, high) : low;  // NaN becomes the least, as in ONNX Runtime on x86
  return static_cast<uint8_t>(static_cast<int32_t>(std::nearbyintf(kept)) + zero_point);
}

inline float smoothed(const float* multiplier, const float* x, int64_t k) {
  return multiplier != nullptr ? x[k] * multiplier[k] : x[k];
}

void round_portable(const Rounding& rounding, const float* x, uint8_t* to, int64_t K) {
  for (int64_t k = 0; k < K; ++k)
    to[k] = rounded(smoothed(rounding.multiplier, x, k) / rounding.scale, rounding.zero_point);
}

// Scale and zero point of a row from its range, in the order in which the operator's function computes them.
struct TokenRange {
  float low = 0.0f, high = 0.0f;
  bool is_number = true;  // of every element

  Rounding rounding(const float* multiplier) const {
    Rounding made;
    made.scale = std::max((high - low) / 255.0f, std::numeric_limits<float>::min());
    if (!is_number) made.scale = std::numeric_limits<float>::quiet_NaN();  // and so all that the row is multiplied to
    made.inverse = 1.0f / made.scale;
    const float below = -low * made.inverse;
    made.zero_point = below < 255.0f ? static_cast<int32_t>(std::nearbyintf(below)) : 255;  // also where it is NaN
    made.multiplier = multiplier;
    return made;
  }
};

Token token_of(const Rounding& rounding) {
  return {rounding.scale, -rounding.scale * static_cast<float>(rounding.zero_point)};
}

Token round_token_portable(const float* multiplier, const float* x, uint8_t* to, int64_t K) {
  TokenRange range;
  for (int64_t k = 0; k < K; ++k) {
    const float value = smoothed(multiplier, x, k);
    range.low = std::min(range.low, value);
    range.high = std::max(range.high, value);
    range.is_number = range.is_number && !std::isnan(value);
  }
  const Rounding rounding = range.rounding(multiplier);
  for (int64_t k = 0; k < K; ++k)
    to[k] = rounded(smoothed(multiplier, x, k) * rounding.inverse, rounding.zero_point);
  return token_of(rounding);
}

void products_portable(const Panel& panel, const uint8_t* x, int64_t stride, int64_t steps, int rows, int32_t* sums) {
  const int width = panel.vectors * kVector;
  for (int r = 0; r < rows; ++r, x += stride, sums += kTileColumns) {
    std::memcpy(sums, panel.start, sizeof panel.start);
    const int8_t* w = panel.codes;
    for (int64_t k = 0; k < 4 * steps; k += 4)
      for (int n = 0; n < width; ++n, w += 4)
        for (int i = 0; i < 4; ++i) sums[n] += static_cast<int32_t>(w[i]) * x[k + i];
  }
}

float activated(const Epilogue& epilogue, float y) {
  if (epilogue.activation == kNone) return y;
  return epilogue.activation == kRelu ? std::max(y, 0.0f) : epilogue.table(y);
}

void finish_portable(const Panel& panel, const Epilogue& epilogue, const int32_t* sums, const Token* tokens, int rows,
                     const float* residual, void* to, int64_t stride) {
  for (int r = 0; r < rows; ++r, sums += kTileColumns)
    for (int n = 0; n < panel.columns; ++n) {
      const int64_t at = r * stride + n;
      float product = static_cast<float>(sums[n]) * panel.scale[n], bias = panel.bias[n];
      if (tokens != nullptr) {
        product *= tokens[r].scale;
        bias += tokens[r].low * panel.total[n];
      }
      const float y = activated(epilogue, product + bias);
      if (epilogue.result == kCodes)
        static_cast<uint8_t*>(to)[at] = rounded(y * panel.multiplier[n], epilogue.zero_point);
      else
        static_cast<float*>(to)[at] = epilogue.result == kResidual ? y + residual[at] : y;
    }
}

#if defined(HAS_AVX2_PATH)

// Clamped as floats, so that what is too large for an integer, an infinity and NaN end where QuantizeLinear has them.
AVX512_INLINE __m512i codes_of(__m512 value, __m512 low, __m512 high, __m512i zero_point) {
  const __m512 kept = _mm512_min_ps(_mm512_max_ps(value, low), high);
  return _mm512_add_epi32(_mm512_cvtps_epi32(kept), zero_point);
}

template <bool Smoothed, bool Tokens>
AVX512_INLINE void round_row(const Rounding& rounding, const float* x, uint8_t* to, int64_t K) {
  const __m512 step = _mm512_set1_ps(Tokens ? rounding.inverse : rounding.scale);
  const __m512 low = _mm512_set1_ps(static_cast<float>(-rounding.zero_point));
  const __m512 high = _mm512_set1_ps(static_cast<float>(255 - rounding.zero_point));
  const __m512i zero_point = _mm512_set1_epi32(rounding.zero_point);
  for (int64_t k = 0; k < K; k += kVector) {
    const __mmask16 mask = static_cast<__mmask16>(K - k >= kVector ? 0xffff : (1 << (K - k)) - 1);
    __m512 value = _mm512_maskz_loadu_ps(mask, x + k);
    if constexpr (Smoothed) value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(mask, rounding.multiplier + k));
    value = Tokens ? _mm512_mul_ps(value, step) : _mm512_div_ps(value, step);
    _mm512_mask_cvtepi32_storeu_epi8(to + k, mask, codes_of(value, low, high, zero_point));
  }
}

template <bool Tokens>
AVX512 void round_vnni(const Rounding& rounding, const float* x, uint8_t* to, int64_t K) {
  if (rounding.multiplier != nullptr) round_row<true, Tokens>(rounding, x, to, K);
  else round_row<false, Tokens>(rounding, x, to, K);
}

template <bool Smoothed>
AVX512_INLINE TokenRange range_of(const float* multiplier, const float* x, int64_t K) {
  __m512 low = _mm512_setzero_ps(), high = low;
  __mmask16 none = 0;
  for (int64_t k = 0; k < K; k += kVector) {
    const __mmask16 mask = static_cast<__mmask16>(K - k >= kVector ? 0xffff : (1 << (K - k)) - 1);
    __m512 value = _mm512_maskz_loadu_ps(mask, x + k);
    if constexpr (Smoothed) value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(mask, multiplier + k));
    low = _mm512_min_ps(value, low);
    high = _mm512_max_ps(value, high);
    none = static_cast<__mmask16>(none | _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q));
  }
  return {_mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high), none == 0};
}

AVX512 Token round_token_vnni(const float* multiplier, const float* x, uint8_t* to, int64_t K) {
  const TokenRange range = multiplier != nullptr ? range_of<true>(multiplier, x, K) : range_of<false>(multiplier, x, K);
  const Rounding rounding = range.rounding(multiplier);
  round_vnni<true>(rounding, x, to, K);
  return token_of(rounding);
}

AVX512_INLINE __m512i four_codes(const uint8_t* from) {
  int32_t value;
  std::memcpy(&value, from, 4);
  return _mm512_set1_epi32(value);
}

// Rows x Vectors sums stay in registers over all of K.
template <int Rows, int Vectors>
AVX512 void products_of(const Panel& panel, const uint8_t* x, int64_t stride, int64_t steps, int32_t* sums) {
  __m512i sum[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[r][v] = _mm512_load_si512(panel.start + v * kVector);
  const int8_t* w = panel.codes;
  for (int64_t k = 0; k < steps; ++k, x += 4, w += Vectors * 64) {
    __m512i weight[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) weight[v] = _mm512_load_si512(w + 64 * v);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const __m512i four = four_codes(x + r * stride);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = _mm512_dpbusd_epi32(sum[r][v], four, weight[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) _mm512_store_si512(sums + r * kTileColumns + v * kVector, sum[r][v]);
}

using ProductsOf = void (*)(const Panel&, const uint8_t*, int64_t, int64_t, int32_t*);

template <size_t... I>
constexpr std::array<ProductsOf, sizeof...(I)> all_products(std::index_sequence<I...>) {
  return {products_of<I / kTileVectors + 1, I % kTileVectors + 1>...};
}

void products_vnni(const Panel& panel, const uint8_t* x, int64_t stride, int64_t steps, int rows, int32_t* sums) {
  static constexpr auto all = all_products(std::make_index_sequence<kTileRows * kTileVectors>());
  all[static_cast<size_t>((rows - 1) * kTileVectors + panel.vectors - 1)](panel, x, stride, steps, sums);
}

template <int Shape, int Kind, bool Tokens>
AVX512 void finish_vnni(const Panel& panel, const Epilogue& epilogue, const int32_t* sums, const Token* tokens, int rows,
                        const float* residual, void* to, int64_t stride) {
  const TableRegisters table(epilogue.table);
  const __m512 low = _mm512_set1_ps(static_cast<float>(-epilogue.zero_point));
  const __m512 high = _mm512_set1_ps(static_cast<float>(255 - epilogue.zero_point));
  const __m512i zero_point = _mm512_set1_epi32(epilogue.zero_point);
  for (int v = 0; v < panel.vectors; ++v) {
    const int left = panel.columns - v * kVector, first = v * kVector;
    const __mmask16 mask = static_cast<__mmask16>(left >= kVector ? 0xffff : (1 << left) - 1);
    const __m512 scale = _mm512_load_ps(panel.scale + first), bias = _mm512_load_ps(panel.bias + first);
    const __m512 multiplier = _mm512_load_ps(panel.multiplier + first), total = _mm512_load_ps(panel.total + first);
    for (int r = 0; r < rows; ++r) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + r * kTileColumns + first));
      // Two roundings, as in ONNX Runtime; this form of the product keeps the compiler from making one of them.
      __m512 y = _mm512_mul_round_ps(sum, scale, _MM_FROUND_CUR_DIRECTION);
      if constexpr (Tokens) {
        const __m512 offset = _mm512_fmadd_ps(_mm512_set1_ps(tokens[r].low), total, bias);
        y = _mm512_fmadd_ps(y, _mm512_set1_ps(tokens[r].scale), offset);
      } else {
        y = _mm512_add_ps(y, bias);
      }
      if constexpr (Shape == kRelu) y = _mm512_max_ps(_mm512_setzero_ps(), y);  // in this order NaN stays
      if constexpr (Shape == kGelu) y = table(y);
      const int64_t at = r * stride + first;
      if constexpr (Kind == kCodes) {
        const __m512i codes = codes_of(_mm512_mul_ps(y, multiplier), low, high, zero_point);
        _mm512_mask_cvtepi32_storeu_epi8(static_cast<uint8_t*>(to) + at, mask, codes);
      } else {
        if constexpr (Kind == kResidual) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, residual + at));
        _mm512_mask_storeu_ps(static_cast<float*>(to) + at, mask, y);
      }
    }
  }
}

template <int Shape>
Finish finish_for(Result result, bool tokens) {
  if (tokens) return result == kResidual ? finish_vnni<Shape, kResidual, true> : finish_vnni<Shape, kPlain, true>;
  if (result == kCodes) return finish_vnni<Shape, kCodes, false>;
  return result == kResidual ? finish_vnni<Shape, kResidual, false> : finish_vnni<Shape, kPlain, false>;
}

#endif

}  // namespace

Int8Kernels int8_kernels(const Epilogue& epilogue, bool tokens, bool vnni) {
#if defined(HAS_AVX2_PATH)
  if (vnni) {
    const Activation activation = epilogue.activation;
    const Result result = epilogue.result;
    const Finish finish = activation == kNone   ? finish_for<kNone>(result, tokens)
                          : activation == kRelu ? finish_for<kRelu>(result, tokens)
                                                : finish_for<kGelu>(result, tokens);
    return {round_vnni<false>, round_token_vnni, products_vnni, finish};
  }
#else
  (void)epilogue, (void)tokens, (void)vnni;
#endif
  return {round_portable, round_token_portable, products_portable, finish_portable};
}

}  // namespace toolkit
