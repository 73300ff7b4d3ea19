// The 16-bit floats that engines use, widened. Exact: every value of either has a float of its own.
#pragma once

#include <cstdint>

namespace toolkit {

/// IEEE 754 binary16.
float float16_to_float(std::uint16_t bits);

/// The upper half of a binary32.
float bfloat16_to_float(std::uint16_t bits);

}  // namespace toolkit
