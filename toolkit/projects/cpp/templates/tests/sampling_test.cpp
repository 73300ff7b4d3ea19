#include "sampling.hpp"

#include <cmath>

#include "check.hpp"
#include "text_stream.hpp"

namespace {

void test_shares() {
  const std::vector<float> logits = {std::log(1.0f), std::log(6.0f), std::log(3.0f)};
  const auto all = toolkit::shares(logits, 1, 1);
  CHECK(std::abs(all[0] - 0.1) < 1e-6 && std::abs(all[1] - 0.6) < 1e-6 && std::abs(all[2] - 0.3) < 1e-6);
  const auto nucleus = toolkit::shares(logits, 1, 0.7);
  CHECK(nucleus[0] == 0 && std::abs(nucleus[1] - 2.0 / 3) < 1e-6 && std::abs(nucleus[2] - 1.0 / 3) < 1e-6);
  const auto cold = toolkit::shares(logits, 0.5, 1);
  CHECK(std::abs(cold[1] - 36.0 / 46) < 1e-6);
}

void test_choice() {
  const std::vector<float> logits = {1, 5, 5};
  CHECK(toolkit::Sampler({0, 1, 0}).choose(logits) == 1);
  CHECK(toolkit::Sampler({1, 1e-9, 3}).choose(logits) == 1);
  toolkit::Sampler first({1, 1, 42}), second({1, 1, 42});
  for (int i = 0; i < 20; ++i) CHECK(first.choose(logits) == second.choose(logits));
}

/// Each token is one byte; half a character is shown as broken, as tokenizers do.
toolkit::Result<std::string> decode(const std::vector<std::int64_t>& tokens) {
  std::string text;
  for (const auto token : tokens) text.push_back(static_cast<char>(token));
  const auto last = text.empty() ? 0 : static_cast<unsigned char>(text.back());
  if (last >= 0xc0) text = text.substr(0, text.size() - 1) + "\xef\xbf\xbd";
  return text;
}

void test_text_comes_in_whole_characters() {
  auto stream = toolkit::TextStream::start(decode, {'h', 'i'});
  CHECK(stream);
  CHECK(*stream->push('a') == "a");
  CHECK(stream->push(0xc3)->empty());
  CHECK(*stream->push(0xa9) == "\xc3\xa9");
  CHECK(stream->push(0xc3)->empty());
  CHECK(*stream->flush() == "\xef\xbf\xbd");
}

}  // namespace

int main() {
  test_shares();
  test_choice();
  test_text_comes_in_whole_characters();
  return done();
}
