// The operators of domain `toolkit.cpu`, each from a file of its own; they live as long as the library.

#pragma once

#include <vector>

#include "ort_interface.h"

namespace toolkit {

std::vector<const Op*> attention_operators();
std::vector<const Op*> block_linear_operators();
std::vector<const Op*> float_linear_operators();
std::vector<const Op*> int8_linear_operators();

}  // namespace toolkit
