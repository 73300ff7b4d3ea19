// Tensors as a program holds them: a type, a shape, and the elements in C order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace toolkit {

/// The numbers are those of ONNX's TensorProto.DataType, which ONNX Runtime uses too.
enum class DType : std::int32_t {
  float32 = 1,
  uint8 = 2,
  int8 = 3,
  uint16 = 4,
  int16 = 5,
  int32 = 6,
  int64 = 7,
  string = 8,
  boolean = 9,
  float16 = 10,
  float64 = 11,
  uint32 = 12,
  uint64 = 13,
  bfloat16 = 16,
};

/// As manifests spell it: `float32`, `int64`, `bool`, `string`.
std::string_view name_of(DType dtype);
std::optional<DType> dtype_named(std::string_view name);
std::optional<DType> dtype_numbered(std::int64_t number);
/// Bytes of one element; 0 for strings.
std::size_t size_of(DType dtype);

template <typename T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::float32;
}
template <>
constexpr DType dtype_of<std::int64_t>() {
  return DType::int64;
}
template <>
constexpr DType dtype_of<std::uint8_t>() {
  return DType::uint8;
}

using Shape = std::vector<std::int64_t>;

/// How many elements a shape has; none where a size is negative or the product does not fit.
std::optional<std::size_t> count_of(const Shape& shape);

/// `texts` hold the elements where the type is string, `bytes` everywhere else.
struct Tensor {
  DType dtype = DType::float32;
  Shape shape;
  std::vector<std::byte> bytes;
  std::vector<std::string> texts;

  /// All zeros, or empty texts. The shape must be one that `count_of` takes.
  static Tensor zeros(DType dtype, Shape shape);
  template <typename T>
  static Tensor of(Shape shape, const std::vector<T>& values);
  static Tensor of_texts(std::vector<std::string> texts);

  std::size_t count() const { return count_of(shape).value_or(0); }

  /// The elements, where they are of type T; a null pointer otherwise.
  template <typename T>
  const T* as() const {
    return dtype == dtype_of<T>() ? reinterpret_cast<const T*>(bytes.data()) : nullptr;
  }
  template <typename T>
  T* as() {
    return dtype == dtype_of<T>() ? reinterpret_cast<T*>(bytes.data()) : nullptr;
  }
};

/// Tensors by name.
using Tensors = std::map<std::string, Tensor>;

/// An axis of an input or output: a size, or a name whose size may vary (then `size` is -1).
struct Axis {
  std::int64_t size = -1;
  std::string name;
  bool fixed() const { return size >= 0; }
};

/// An input or output as a model declares it.
struct TensorSpec {
  std::string name;
  DType dtype = DType::float32;
  std::vector<Axis> axes;
};

/// `[1, 3, 8, 8]`
std::string spelled(const Shape& shape);
/// `float32 [1, 3, 8, 8]`
std::string described(const Tensor& tensor);
/// `float32 [batch, 1, 8, 8]`
std::string described(const TensorSpec& spec);

/// The `count` elements from `first` on as doubles. Not for texts.
std::vector<double> as_doubles(const Tensor& tensor, std::size_t first, std::size_t count);
/// All elements as floats. Not for texts.
std::vector<float> as_floats(const Tensor& tensor);

template <typename T>
Tensor Tensor::of(Shape shape, const std::vector<T>& values) {
  Tensor tensor{dtype_of<T>(), std::move(shape), std::vector<std::byte>(values.size() * sizeof(T)), {}};
  if (!values.empty()) std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
  return tensor;
}

}  // namespace toolkit
