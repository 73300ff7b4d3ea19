#include "json.hpp"

#include <cmath>
#include <locale>
#include <optional>
#include <sstream>

namespace toolkit {

namespace {

constexpr int kDeepest = 64;

/// Appends a code point as UTF-8.
void append_utf8(std::string& text, std::uint32_t code) {
  const auto put = [&](std::uint32_t byte) { text.push_back(static_cast<char>(byte)); };
  const auto tail = [&](int shift) { put(0x80 | ((code >> shift) & 0x3f)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | (code >> 6));
    tail(0);
  } else if (code < 0x10000) {
    put(0xe0 | (code >> 12));
    tail(6);
    tail(0);
  } else {
    put(0xf0 | (code >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Result<Json> document() {
    Json value;
    if (read_value(value, 0)) {
      skip_space();
      if (at_ == text_.size()) return value;
      fail("something follows the end");
    }
    return Error{"line " + std::to_string(line()) + ": " + reason_, ""};
  }

 private:
  bool fail(const char* reason) {
    if (reason_.empty()) reason_ = reason;
    return false;
  }

  std::size_t line() const {
    std::size_t count = 1;
    for (std::size_t i = 0; i < at_; ++i) count += text_[i] == '\n';
    return count;
  }

  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }

  bool take(char wanted) {
    if (at_ == text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  bool read_value(Json& value, int depth) {
    if (depth > kDeepest) return fail("nested too deeply");
    skip_space();
    if (at_ == text_.size()) return fail("ends too early");
    switch (text_[at_]) {
      case '{': return read_object(value, depth);
      case '[': return read_array(value, depth);
      case '"': return read_text_value(value);
      case 't': return read_word("true", Json(true), value);
      case 'f': return read_word("false", Json(false), value);
      case 'n': return read_word("null", Json(), value);
      default: return read_number(value);
    }
  }

  bool read_word(std::string_view word, Json meaning, Json& value) {
    if (!take(word)) return fail("not a JSON value");
    value = std::move(meaning);
    return true;
  }

  bool read_text_value(Json& value) {
    std::string text;
    if (!read_text(text)) return false;
    value = Json(std::move(text));
    return true;
  }

  bool read_object(Json& value, int depth) {
    Json::Object members;
    ++at_;
    skip_space();
    if (!take('}')) {
      do {
        skip_space();
        JsonMember member;
        if (!read_text(member.name)) return false;
        skip_space();
        if (!take(':')) return fail("a ':' is missing");
        if (!read_value(member.value, depth + 1)) return false;
        members.push_back(std::move(member));
        skip_space();
      } while (take(','));
      if (!take('}')) return fail("a '}' is missing");
    }
    value = Json(std::move(members));
    return true;
  }

  bool read_array(Json& value, int depth) {
    Json::Array items;
    ++at_;
    skip_space();
    if (!take(']')) {
      do {
        Json item;
        if (!read_value(item, depth + 1)) return false;
        items.push_back(std::move(item));
        skip_space();
      } while (take(','));
      if (!take(']')) return fail("a ']' is missing");
    }
    value = Json(std::move(items));
    return true;
  }

  bool read_text(std::string& text) {
    if (!take('"')) return fail("a text in quotes is missing");
    while (at_ < text_.size()) {
      const char next = text_[at_++];
      if (next == '"') return true;
      if (static_cast<unsigned char>(next) < 0x20) return fail("a control character in a text");
      if (next != '\\') {
        text.push_back(next);
      } else if (!read_escape(text)) {
        return false;
      }
    }
    return fail("a text does not end");
  }

  bool read_escape(std::string& text) {
    constexpr std::string_view kLetters = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    if (at_ == text_.size()) return fail("a text does not end");
    const char letter = text_[at_++];
    if (letter == 'u') return read_code_point(text);
    const auto place = kLetters.find(letter);
    if (place == std::string_view::npos) return fail("an unknown escape in a text");
    text.push_back(kMeanings[place]);
    return true;
  }

  bool read_code_point(std::string& text) {
    auto code = read_hex();
    if (code && *code >= 0xd800 && *code < 0xdc00) {
      const auto low = take("\\u") ? read_hex() : std::nullopt;
      if (!low || *low < 0xdc00 || *low >= 0xe000) return fail("half of a surrogate pair in a text");
      code = 0x10000 + ((*code - 0xd800) << 10) + (*low - 0xdc00);
    } else if (!code || (*code >= 0xdc00 && *code < 0xe000)) {
      return fail("a broken \\u escape in a text");
    }
    append_utf8(text, *code);
    return true;
  }

  std::optional<std::uint32_t> read_hex() {
    if (text_.size() - at_ < 4) return std::nullopt;
    std::uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      const auto digit = std::string_view("0123456789abcdef").find(static_cast<char>(text_[at_++] | 0x20));
      if (digit == std::string_view::npos) return std::nullopt;
      code = code * 16 + static_cast<std::uint32_t>(digit);
    }
    return code;
  }

  std::size_t skip_digits() {
    const auto start = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    return at_ - start;
  }

  bool read_number(Json& value) {
    const auto start = at_;
    take('-');
    const bool zero = at_ < text_.size() && text_[at_] == '0';
    const auto digits = skip_digits();
    if (digits == 0 || (zero && digits > 1)) return fail("not a JSON value");
    if (take('.') && skip_digits() == 0) return fail("a number without decimals");
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      if (skip_digits() == 0) return fail("a number without an exponent");
    }
    std::istringstream stream{std::string(text_.substr(start, at_ - start))};
    stream.imbue(std::locale::classic());  // strtod would follow the user's decimal comma
    double number = 0;
    stream >> number;
    if (stream.fail()) return fail("a number that is too large");
    value = Json(number);
    return true;
  }

  std::string_view text_;
  std::size_t at_ = 0;
  std::string reason_;
};

const Json kNull;

}  // namespace

bool Json::is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
bool Json::is_number() const { return std::holds_alternative<double>(value_); }
bool Json::is_string() const { return std::holds_alternative<std::string>(value_); }
bool Json::is_object() const { return std::holds_alternative<Object>(value_); }

bool Json::boolean(bool otherwise) const {
  const auto* held = std::get_if<bool>(&value_);
  return held ? *held : otherwise;
}

double Json::number(double otherwise) const {
  const auto* held = std::get_if<double>(&value_);
  return held ? *held : otherwise;
}

std::int64_t Json::integer(std::int64_t otherwise) const {
  const double held = number(0.5);
  const bool exact = std::abs(held) <= 9007199254740992.0 && std::trunc(held) == held;
  return exact ? static_cast<std::int64_t>(held) : otherwise;
}

const std::string& Json::text() const {
  static const std::string none;
  const auto* held = std::get_if<std::string>(&value_);
  return held ? *held : none;
}

const Json::Array& Json::array() const {
  static const Array none;
  const auto* held = std::get_if<Array>(&value_);
  return held ? *held : none;
}

const Json::Object& Json::object() const {
  static const Object none;
  const auto* held = std::get_if<Object>(&value_);
  return held ? *held : none;
}

const Json& Json::operator[](std::string_view name) const {
  for (const auto& member : object()) {
    if (member.name == name) return member.value;
  }
  return kNull;
}

Result<Json> parse_json(std::string_view text) { return Parser(text).document(); }

}  // namespace toolkit
