// What the programs here share: saying what went wrong.
#pragma once

#include <iostream>

#include "result.hpp"

constexpr int kPassed = 0, kFailed = 1, kCalledWrongly = 2;

inline int report(const toolkit::Error& error) {
  std::cerr << "error: " << error.message << "\n";
  if (!error.hint.empty()) std::cerr << "hint: " << error.hint << "\n";
  return kFailed;
}
