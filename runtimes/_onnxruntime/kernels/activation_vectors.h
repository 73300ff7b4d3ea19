// The activation table in registers: sixteen numbers at once.

#pragma once

#include "activation_table.h"
#include "processor.h"

#if defined(HAS_AVX2_PATH)

namespace toolkit {

struct TableRegisters {
  __m512 per_unit, low[ActivationTable::kTerms], high[ActivationTable::kTerms];

  AVX512_INLINE explicit TableRegisters(const ActivationTable& table) {
    per_unit = _mm512_set1_ps(table.per_unit);
    for (int d = 0; d < ActivationTable::kTerms; ++d) {
      low[d] = _mm512_load_ps(table.terms[d]);
      high[d] = _mm512_load_ps(table.terms[d] + 16);
    }
  }
  AVX512_INLINE __m512 term(int d, __m512i piece) const { return _mm512_permutex2var_ps(low[d], piece, high[d]); }

  AVX512_INLINE __m512 operator()(__m512 x) const {
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
    const __m512 magic = _mm512_set1_ps(12582912.0f), last = _mm512_set1_ps(ActivationTable::kPieces - 1.0f);
    const __m512 place = _mm512_min_ps(_mm512_mul_ps(_mm512_abs_ps(x), per_unit), last);
    const __m512 shifted = _mm512_add_ps(place, magic);
    const __m512 u = _mm512_sub_ps(place, _mm512_sub_ps(shifted, magic));
    const __m512i piece = _mm512_castps_si512(shifted);
    __m512 h = term(ActivationTable::kTerms - 1, piece);
#pragma GCC unroll 8
    for (int d = ActivationTable::kTerms - 2; d >= 0; --d) h = _mm512_fmadd_ps(h, u, term(d, piece));
    return _mm512_sub_ps(_mm512_max_ps(_mm512_setzero_ps(), x), h);
  }
};

}  // namespace toolkit

#endif
