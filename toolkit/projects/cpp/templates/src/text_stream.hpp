// Text from tokens as they come: whole characters only.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "result.hpp"

namespace toolkit {

/// Turns tokens into pieces of text that join to the whole.
///
/// A token's text depends on its neighbours: a character may take several tokens, and tokenizers drop the space of a
/// first word. So each piece is the difference of two decodings that begin a few tokens earlier, the first of them in
/// the prompt. What ends in a broken character (U+FFFD) waits for the tokens that complete it.
class TextStream {
 public:
  using Decode = std::function<Result<std::string>(const std::vector<std::int64_t>&)>;

  static Result<TextStream> start(Decode decode, const std::vector<std::int64_t>& prompt);

  /// The text that is certain now, which may be none.
  Result<std::string> push(std::int64_t token);
  /// What was held back: no more tokens will come.
  Result<std::string> flush();

 private:
  explicit TextStream(Decode decode) : decode_(std::move(decode)) {}
  Result<std::string> advance(const std::string& text);

  Decode decode_;
  std::vector<std::int64_t> window_;
  std::size_t known_ = 0;
  std::string known_text_;
};

}  // namespace toolkit
