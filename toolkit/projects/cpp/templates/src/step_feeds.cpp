#include "step_feeds.hpp"

#include <numeric>

namespace toolkit {

Tensors step_feeds(const std::vector<std::int64_t>& tokens, std::int64_t past) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  std::vector<std::int64_t> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), past);
  const std::vector<std::int64_t> mask(static_cast<std::size_t>(past + count), 1);
  Tensors feeds;
  feeds["input_ids"] = Tensor::of({1, count}, tokens);
  feeds["position_ids"] = Tensor::of({1, count}, positions);
  feeds["attention_mask"] = Tensor::of({1, past + count}, mask);
  return feeds;
}

std::vector<float> last_logits(const Tensor& logits) {
  if (logits.count() == 0) return {};
  const auto vocabulary = static_cast<std::size_t>(logits.shape.back());
  const auto values = as_doubles(logits, logits.count() - vocabulary, vocabulary);
  return {values.begin(), values.end()};
}

}  // namespace toolkit
