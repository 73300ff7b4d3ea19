#include "text_stream.hpp"

#include <algorithm>

namespace toolkit {

namespace {

constexpr std::size_t kPromptTail = 8;

bool ends_broken(const std::string& text) {
  const std::string mark = "\xef\xbf\xbd";
  return text.size() >= mark.size() && text.compare(text.size() - mark.size(), mark.size(), mark) == 0;
}

}  // namespace

Result<TextStream> TextStream::start(Decode decode, const std::vector<std::int64_t>& prompt) {
  TextStream stream(std::move(decode));
  const auto tail = std::min(prompt.size(), kPromptTail);
  stream.window_.assign(prompt.end() - static_cast<std::ptrdiff_t>(tail), prompt.end());
  stream.known_ = tail;
  auto text = stream.decode_(stream.window_);
  if (!text) return text.error();
  stream.known_text_ = std::move(*text);
  return stream;
}

Result<std::string> TextStream::push(std::int64_t token) {
  window_.push_back(token);
  const auto text = decode_(window_);
  if (!text) return text.error();
  if (text->size() <= known_text_.size() || ends_broken(*text)) return std::string();
  return advance(*text);
}

Result<std::string> TextStream::flush() {
  const auto text = decode_(window_);
  if (!text) return text.error();
  return text->size() <= known_text_.size() ? Result<std::string>(std::string()) : advance(*text);
}

Result<std::string> TextStream::advance(const std::string& text) {
  auto piece = text.substr(known_text_.size());
  window_.erase(window_.begin(), window_.begin() + static_cast<std::ptrdiff_t>(known_));
  known_ = window_.size();
  auto known = decode_(window_);
  if (!known) return known.error();
  known_text_ = std::move(*known);
  return piece;
}

}  // namespace toolkit
