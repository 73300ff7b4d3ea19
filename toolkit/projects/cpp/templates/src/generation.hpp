// The loop that drives a decoder: the prompt in chunks, then one token at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "decoder.hpp"
#include "result.hpp"
#include "sampling.hpp"

namespace toolkit {

struct Generation {
  std::int64_t max_new_tokens = 128;
  Sampling sampling;
  std::vector<std::int64_t> eos;
};

/// `eos` where the model ended its text, else `length`.
struct Generated {
  std::vector<std::int64_t> tokens;
  std::string finish;
};

/// Continue the prompt, telling each token as it comes (but not one that ends the text). Logits that are NaN or
/// infinite are an error.
Result<Generated> generate(Decoder& decoder, const std::vector<std::int64_t>& prompt, const Generation& settings,
                           const std::function<Failure(std::int64_t)>& tell);

}  // namespace toolkit
