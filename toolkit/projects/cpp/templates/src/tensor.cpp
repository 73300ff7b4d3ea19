#include "tensor.hpp"

#include <array>
#include <limits>

#include "half.hpp"

namespace toolkit {

namespace {

struct Known {
  DType dtype;
  std::string_view name;
  std::size_t size;
};

constexpr std::array<Known, 14> kKnown = {{{DType::float32, "float32", 4},
                                           {DType::uint8, "uint8", 1},
                                           {DType::int8, "int8", 1},
                                           {DType::uint16, "uint16", 2},
                                           {DType::int16, "int16", 2},
                                           {DType::int32, "int32", 4},
                                           {DType::int64, "int64", 8},
                                           {DType::string, "string", 0},
                                           {DType::boolean, "bool", 1},
                                           {DType::float16, "float16", 2},
                                           {DType::float64, "float64", 8},
                                           {DType::uint32, "uint32", 4},
                                           {DType::uint64, "uint64", 8},
                                           {DType::bfloat16, "bfloat16", 2}}};

const Known& known(DType dtype) {
  for (const auto& each : kKnown) {
    if (each.dtype == dtype) return each;
  }
  return kKnown[0];
}

template <typename T, typename Out>
void widen(const std::byte* bytes, std::vector<Out>& out) {
  for (auto& value : out) {
    T element;
    std::memcpy(&element, bytes, sizeof element);
    value = static_cast<Out>(element);
    bytes += sizeof element;
  }
}

template <typename Out, float (*Wide)(std::uint16_t)>
void widen_half(const std::byte* bytes, std::vector<Out>& out) {
  std::vector<std::uint16_t> halves(out.size());
  widen<std::uint16_t>(bytes, halves);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<Out>(Wide(halves[i]));
}

template <typename Out>
std::vector<Out> converted(const Tensor& tensor, std::size_t first, std::size_t count) {
  std::vector<Out> out(count);
  const std::byte* bytes = tensor.bytes.data() + first * size_of(tensor.dtype);
  switch (tensor.dtype) {
    case DType::float32: widen<float>(bytes, out); break;
    case DType::float64: widen<double>(bytes, out); break;
    case DType::float16: widen_half<Out, float16_to_float>(bytes, out); break;
    case DType::bfloat16: widen_half<Out, bfloat16_to_float>(bytes, out); break;
    case DType::uint8: case DType::boolean: widen<std::uint8_t>(bytes, out); break;
    case DType::int8: widen<std::int8_t>(bytes, out); break;
    case DType::uint16: widen<std::uint16_t>(bytes, out); break;
    case DType::int16: widen<std::int16_t>(bytes, out); break;
    case DType::uint32: widen<std::uint32_t>(bytes, out); break;
    case DType::int32: widen<std::int32_t>(bytes, out); break;
    case DType::uint64: widen<std::uint64_t>(bytes, out); break;
    case DType::int64: widen<std::int64_t>(bytes, out); break;
    case DType::string: break;
  }
  return out;
}

template <typename Items, typename Spell>
std::string bracketed(const Items& items, Spell spell) {
  std::string text = "[";
  for (const auto& item : items) text += (text.size() > 1 ? ", " : "") + spell(item);
  return text + "]";
}

}  // namespace

std::string_view name_of(DType dtype) { return known(dtype).name; }

std::optional<DType> dtype_named(std::string_view name) {
  for (const auto& each : kKnown) {
    if (each.name == name) return each.dtype;
  }
  return std::nullopt;
}

std::optional<DType> dtype_numbered(std::int64_t number) {
  for (const auto& each : kKnown) {
    if (static_cast<std::int64_t>(each.dtype) == number) return each.dtype;
  }
  return std::nullopt;
}

std::size_t size_of(DType dtype) { return known(dtype).size; }

std::optional<std::size_t> count_of(const Shape& shape) {
  // Half of what a size can be, over the widest element: so that sizes in bytes fit too.
  constexpr auto kMost = std::numeric_limits<std::size_t>::max() / 16;
  std::size_t count = 1;
  bool empty = false;
  for (const auto size : shape) {
    if (size < 0) return std::nullopt;
    empty = empty || size == 0;
    if (size > 0 && count > kMost / static_cast<std::size_t>(size)) return std::nullopt;
    if (size > 0) count *= static_cast<std::size_t>(size);
  }
  return empty ? 0 : count;
}

Tensor Tensor::zeros(DType dtype, Shape shape) {
  const auto count = count_of(shape).value_or(0);
  Tensor tensor{dtype, std::move(shape), std::vector<std::byte>(count * size_of(dtype)), {}};
  if (dtype == DType::string) tensor.texts.resize(count);
  return tensor;
}

Tensor Tensor::of_texts(std::vector<std::string> texts) {
  const auto count = static_cast<std::int64_t>(texts.size());
  return Tensor{DType::string, {count}, {}, std::move(texts)};
}

std::string spelled(const Shape& shape) {
  return bracketed(shape, [](std::int64_t size) { return std::to_string(size); });
}

std::string described(const Tensor& tensor) { return std::string(name_of(tensor.dtype)) + " " + spelled(tensor.shape); }

std::string described(const TensorSpec& spec) {
  const auto spell = [](const Axis& axis) { return axis.fixed() ? std::to_string(axis.size) : axis.name; };
  return std::string(name_of(spec.dtype)) + " " + bracketed(spec.axes, spell);
}

std::vector<double> as_doubles(const Tensor& tensor, std::size_t first, std::size_t count) {
  return converted<double>(tensor, first, count);
}

std::vector<float> as_floats(const Tensor& tensor) { return converted<float>(tensor, 0, tensor.count()); }

}  // namespace toolkit
