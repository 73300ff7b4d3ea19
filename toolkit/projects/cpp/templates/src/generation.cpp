#include "generation.hpp"

#include <algorithm>
#include <cmath>

namespace toolkit {

namespace {

/// How many positions of a prompt go through at a time: it bounds the memory of a long one.
constexpr std::size_t kPrefill = 512;

Failure check_finite(const std::vector<float>& logits, std::int64_t position) {
  const auto odd = std::count_if(logits.begin(), logits.end(), [](float value) { return !std::isfinite(value); });
  if (odd == 0 && !logits.empty()) return std::nullopt;
  return Error{std::to_string(odd) + " of " + std::to_string(logits.size()) + " logits are NaN or infinite at position " +
                   std::to_string(position),
               "Run selftest on the bundle; a scheme with more precision, such as fp32, may hold."};
}

Result<std::vector<float>> prefill(Decoder& decoder, const std::vector<std::int64_t>& prompt) {
  if (auto failure = check_room(decoder, prompt.size())) return *failure;
  Result<std::vector<float>> logits = std::vector<float>();
  for (std::size_t start = 0; start < prompt.size() && logits; start += kPrefill) {
    const auto first = prompt.begin() + static_cast<std::ptrdiff_t>(start);
    const auto size = std::min(kPrefill, prompt.size() - start);
    logits = decoder.forward({first, first + static_cast<std::ptrdiff_t>(size)});
  }
  return logits;
}

}  // namespace

Result<Generated> generate(Decoder& decoder, const std::vector<std::int64_t>& prompt, const Generation& settings,
                           const std::function<Failure(std::int64_t)>& tell) {
  auto logits = prefill(decoder, prompt);
  Sampler sampler(settings.sampling);
  Generated generated{{}, "length"};
  while (true) {
    if (!logits) return logits.error();
    if (auto failure = check_finite(*logits, decoder.length())) return *failure;
    const auto token = sampler.choose(*logits);
    generated.tokens.push_back(token);
    if (std::count(settings.eos.begin(), settings.eos.end(), token) > 0) {
      generated.finish = "eos";
      return generated;
    }
    if (auto failure = tell(token)) return *failure;
    const bool full = decoder.length() >= decoder.limit();
    if (full || static_cast<std::int64_t>(generated.tokens.size()) >= settings.max_new_tokens) return generated;
    logits = decoder.forward({token});
  }
}

}  // namespace toolkit
