// A language model with its cache, for one text at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "result.hpp"

namespace toolkit {

class Decoder {
 public:
  virtual ~Decoder() = default;
  /// Append tokens, at least one, and answer the logits after the last of them. Asks for room in the cache.
  virtual Result<std::vector<float>> forward(const std::vector<std::int64_t>& tokens) = 0;
  /// How many positions are in the cache.
  virtual std::int64_t length() const = 0;
  /// How many it holds at most.
  virtual std::int64_t limit() const = 0;
};

/// Why so many more tokens cannot go in.
[[nodiscard]] inline Failure check_room(const Decoder& decoder, std::size_t tokens) {
  if (tokens == 0) return Error{"there are no tokens", "Give some text."};
  if (decoder.length() + static_cast<std::int64_t>(tokens) <= decoder.limit()) return std::nullopt;
  return Error{std::to_string(decoder.length()) + " positions and " + std::to_string(tokens) +
                   " new tokens; the cache holds " + std::to_string(decoder.limit()),
               "Give a shorter prompt or a larger --context."};
}

/// `past_key_values.N.key` and `.value` are inputs, `present.N.key` and `.value` the outputs that follow them.
inline bool is_past(const std::string& name) { return name.rfind("past_key_values.", 0) == 0; }
inline std::string present_of(const std::string& past) { return "present." + past.substr(16); }

}  // namespace toolkit
