// A reader of JSON (RFC 8259), for manifests: strict, with a bound on nesting.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "result.hpp"

namespace toolkit {

struct JsonMember;

/// A JSON value. Asking for another type than it has answers something empty, so that absent and null are alike.
class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<JsonMember>;

  Json() = default;
  template <typename T>
  explicit Json(T value) : value_(std::move(value)) {}

  bool is_null() const;
  bool is_number() const;
  bool is_string() const;
  bool is_object() const;

  bool boolean(bool otherwise = false) const;
  double number(double otherwise = 0) const;
  /// The number as an integer, `otherwise` where it is none, or beyond 2^53.
  std::int64_t integer(std::int64_t otherwise = 0) const;
  const std::string& text() const;
  const Array& array() const;
  const Object& object() const;

  /// The member of an object; null where there is none.
  const Json& operator[](std::string_view name) const;

 private:
  std::variant<std::nullptr_t, bool, double, std::string, Array, Object> value_ = nullptr;
};

struct JsonMember {
  std::string name;
  Json value;
};

/// Parse a whole document. The error says in which line it breaks.
Result<Json> parse_json(std::string_view text);

}  // namespace toolkit
