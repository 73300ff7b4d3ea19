// Errors are values: a function that may fail answers a Result, or an optional Error where there is nothing to answer.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace toolkit {

/// What happened, and where it helps, what to do about it.
struct Error {
  std::string message;
  std::string hint;
};

/// Why something failed; empty where it went well.
using Failure = std::optional<Error>;

/// A value, or why there is none. `*` and `->` need a value: ask first.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : held_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : held_(std::in_place_index<1>, std::move(error)) {}

  explicit operator bool() const { return held_.index() == 0; }
  T& operator*() { return std::get<0>(held_); }
  const T& operator*() const { return std::get<0>(held_); }
  T* operator->() { return &std::get<0>(held_); }
  const T* operator->() const { return &std::get<0>(held_); }
  const Error& error() const { return std::get<1>(held_); }

 private:
  std::variant<T, Error> held_;
};

}  // namespace toolkit
