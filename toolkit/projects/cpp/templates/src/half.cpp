#include "half.hpp"

#include <cmath>
#include <cstring>
#include <limits>

namespace toolkit {

float float16_to_float(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  float magnitude = 0;
  if (exponent == 31) {
    using Limits = std::numeric_limits<float>;
    magnitude = fraction ? Limits::quiet_NaN() : Limits::infinity();
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    magnitude = std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  }
  return (bits & 0x8000) ? -magnitude : magnitude;
}

float bfloat16_to_float(std::uint16_t bits) {
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value = 0;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

}  // namespace toolkit
