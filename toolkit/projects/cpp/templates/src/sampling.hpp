// From logits to the next token.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace toolkit {

/// Temperature 0 takes the likeliest token; top-p 1 leaves all of them in.
struct Sampling {
  double temperature = 0;
  double top_p = 1;
  std::uint64_t seed = 0;
};

/// The index of the largest; of equals, the first.
std::int64_t likeliest(const std::vector<float>& logits);

/// The share of each token at that temperature, above 0: softmax, outside the nucleus 0, the rest summing to 1.
/// The nucleus is the smallest set of likeliest tokens with at least `top_p` (Holtzman et al., 2020, section 3.1).
std::vector<double> shares(const std::vector<float>& logits, double temperature, double top_p);

class Sampler {
 public:
  explicit Sampler(const Sampling& sampling) : sampling_(sampling), generator_(sampling.seed) {}
  std::int64_t choose(const std::vector<float>& logits);

 private:
  Sampling sampling_;
  std::mt19937_64 generator_;
};

}  // namespace toolkit
