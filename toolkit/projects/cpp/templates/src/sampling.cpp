#include "sampling.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace toolkit {

std::int64_t likeliest(const std::vector<float>& logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

std::vector<double> shares(const std::vector<float>& logits, double temperature, double top_p) {
  if (logits.empty()) return {};
  const double most = *std::max_element(logits.begin(), logits.end());
  std::vector<double> weights(logits.size());
  double total = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) total += weights[i] = std::exp((logits[i] - most) / temperature);
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (top_p < 1) {
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return weights[a] > weights[b]; });
  }
  double kept = 0;
  for (const auto token : order) {
    if (top_p < 1 && kept >= top_p * total) weights[token] = 0;
    kept += weights[token];
  }
  for (auto& weight : weights) weight /= kept;
  return weights;
}

std::int64_t Sampler::choose(const std::vector<float>& logits) {
  if (sampling_.temperature <= 0) return likeliest(logits);
  const auto weights = shares(logits, sampling_.temperature, sampling_.top_p);
  return std::discrete_distribution<std::int64_t>(weights.begin(), weights.end())(generator_);
}

}  // namespace toolkit
