// The attention kernel, compiled once for each set of instructions.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "attention_call.h"
#include "attention_vectors.h"
#include "memory.h"

namespace toolkit {
namespace {

constexpr int64_t kKeyBlock = 128;
constexpr float kLog2E = 1.44269504f;
// Where maxima start: finite, so that what is excluded, minus infinity, is nothing next to it. Scores of less count as
// excluded too; ONNX Runtime's kernel does the same with the lowest number.
constexpr float kLowest = -3.0e38f;

constexpr int64_t up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

inline float bias_of(const Mask& mask, int64_t at) {
  if (mask.allowed) return mask.allowed[at] ? 0.0f : -INFINITY;
  const float bias = mask.added[at] * kLog2E;
  return bias < kLowest ? -INFINITY : bias;
}

namespace portable {
using Vector = PortableVector;
#define TILE static
#define TILE_INLINE static inline
#include "attention_tiles.h"
#undef TILE
#undef TILE_INLINE
}  // namespace portable

#if defined(HAS_AVX2_PATH)
namespace avx2 {
using Vector = Avx2Vector;
#define TILE AVX2 static
#define TILE_INLINE AVX2_INLINE static
#include "attention_tiles.h"
#undef TILE
#undef TILE_INLINE
}  // namespace avx2

namespace avx512 {
using Vector = Avx512Vector;
#define TILE AVX512 static
#define TILE_INLINE AVX512_INLINE static
#include "attention_tiles.h"
#undef TILE
#undef TILE_INLINE
}  // namespace avx512

#if defined(HAS_BFLOAT16_PATH)
namespace bfloat16 {
using Vector = Bfloat16Vector;
#define TILE BFLOAT16 static
#define TILE_INLINE BFLOAT16_INLINE static
#include "attention_tiles.h"
#undef TILE
#undef TILE_INLINE
}  // namespace bfloat16
#endif
#endif

}  // namespace

AttentionKernel attention_kernel(bool rounded) {
#if defined(HAS_BFLOAT16_PATH)
  if (rounded && multiplies_bfloat16()) return {bfloat16::kMostQueries, bfloat16::attend};
#else
  (void)rounded;
#endif
#if defined(HAS_AVX2_PATH)
  const Instructions found = instructions();
  if (found == kAvx512Vnni) return {avx512::kMostQueries, avx512::attend};
  if (found == kAvx2) return {avx2::kMostQueries, avx2::attend};
#endif
  return {portable::kMostQueries, portable::attend};
}

}  // namespace toolkit
