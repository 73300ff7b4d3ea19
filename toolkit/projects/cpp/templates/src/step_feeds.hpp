// What goes into a language model beside its cache.
#pragma once

#include <string>
#include <vector>

#include "tensor.hpp"

namespace toolkit {

/// int64 tokens and positions [1, S] and a mask of ones [1, P + S], for S tokens behind P positions.
Tensors step_feeds(const std::vector<std::int64_t>& tokens, std::int64_t past);

/// The logits after the last token, of logits [1, S, vocabulary] or, where only the last are answered, [1, 1, …]; empty without any.
std::vector<float> last_logits(const Tensor& logits);

}  // namespace toolkit
