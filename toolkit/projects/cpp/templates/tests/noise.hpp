// Broken input for readers: what was good, with single bytes changed.
#pragma once

#include <random>
#include <string>

/// Calls `read` on many mutations, the same ones at every run.
template <typename Read>
void each_mutation(const std::string& whole, Read read) {
  std::mt19937 generator(7);
  for (int round = 0; round < 3000; ++round) {
    auto mutated = whole;
    for (unsigned changes = 1 + generator() % 3; changes > 0; --changes) {
      mutated[generator() % mutated.size()] = static_cast<char>(generator());
    }
    if (generator() % 4 == 0) mutated.resize(generator() % mutated.size());
    read(mutated);
  }
}
