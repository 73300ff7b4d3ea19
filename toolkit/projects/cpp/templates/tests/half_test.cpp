#include "half.hpp"

#include <cmath>

#include "check.hpp"

using toolkit::bfloat16_to_float;
using toolkit::float16_to_float;

int main() {
  CHECK(float16_to_float(0x3c00) == 1.0f);
  CHECK(float16_to_float(0xc000) == -2.0f);
  CHECK(float16_to_float(0x7bff) == 65504.0f);
  CHECK(float16_to_float(0x0400) == std::ldexp(1.0f, -14));
  CHECK(float16_to_float(0x0001) == std::ldexp(1.0f, -24));
  CHECK(float16_to_float(0x0000) == 0.0f && std::signbit(float16_to_float(0x8000)));
  CHECK(std::isinf(float16_to_float(0x7c00)) && float16_to_float(0xfc00) < 0);
  CHECK(std::isnan(float16_to_float(0x7e00)));
  CHECK(bfloat16_to_float(0x3f80) == 1.0f);
  CHECK(bfloat16_to_float(0xc040) == -3.0f);
  CHECK(std::isinf(bfloat16_to_float(0x7f80)) && std::isnan(bfloat16_to_float(0x7fc0)));
  return done();
}
