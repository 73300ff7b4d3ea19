// Which instructions the kernels may use on this processor, and how functions say that they use them.

#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#define HAS_AVX2_PATH 1
// Every function on this path carries its instruction set: the library is built for any x86 and looks once it runs.
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX2_INLINE __attribute__((always_inline, target("avx2,fma,f16c"))) inline
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
#define AVX512_INLINE \
  __attribute__((always_inline, target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))) inline
#if (defined(__clang__) && __clang_major__ >= 9) || (!defined(__clang__) && __GNUC__ >= 10)
#define HAS_BFLOAT16_PATH 1
#define BFLOAT16 __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
#define BFLOAT16_INLINE \
  __attribute__((always_inline, target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))) inline
#endif
#endif

namespace toolkit {

enum Instructions { kPortable = 0, kAvx2 = 1, kAvx512Vnni = 2 };

#if defined(HAS_AVX2_PATH)
// Asked by hand: compilers differ in which names __builtin_cpu_supports knows, and some answer no to all of them.
inline Instructions of_processor() {
  unsigned a, b, c, d;
  constexpr unsigned needed = bit_FMA | bit_F16C | bit_AVX | bit_OSXSAVE;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & needed) != needed) return kPortable;
  unsigned low, high;  // which wide registers the operating system keeps
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & 0x06) != 0x06 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2)) return kPortable;
  constexpr unsigned wide = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  return (low & 0xe6) == 0xe6 && (b & wide) == wide && (c & bit_AVX512VNNI) ? kAvx512Vnni : kAvx2;
}
#else
inline Instructions of_processor() { return kPortable; }
#endif

// The best there is, or what the environment allows: TOOLKIT_KERNELS=portable or =avx2.
inline Instructions instructions() {
  const Instructions found = of_processor();
  const char* wish = std::getenv("TOOLKIT_KERNELS");
  if (wish == nullptr) return found;
  if (std::strcmp(wish, "portable") == 0) return kPortable;
  return std::strcmp(wish, "avx2") == 0 && found > kAvx2 ? kAvx2 : found;
}

// Whether there are products of bfloat16 beside the rest of AVX512.
inline bool multiplies_bfloat16() {
#if defined(HAS_BFLOAT16_PATH)
  unsigned a, b, c, d;
  constexpr unsigned products = 1u << 5;
  return instructions() == kAvx512Vnni && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & products);
#else
  return false;
#endif
}

}  // namespace toolkit
