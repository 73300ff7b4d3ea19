#include "ort_values.hpp"

namespace toolkit {

namespace {

ONNXTensorElementDataType ort_type(DType dtype) { return static_cast<ONNXTensorElementDataType>(dtype); }

Ort::Value text_value(const Tensor& tensor) {
  Ort::AllocatorWithDefaultOptions allocator;
  auto value = Ort::Value::CreateTensor(allocator, tensor.shape.data(), tensor.shape.size(), ort_type(tensor.dtype));
  // Not through C strings: a text may hold a null character.
  for (std::size_t i = 0; i < tensor.texts.size(); ++i) {
    const auto& text = tensor.texts[i];
    char* place = value.GetResizedStringTensorElementBuffer(i, text.size());
    if (!text.empty()) std::memcpy(place, text.data(), text.size());
  }
  return value;
}

}  // namespace

Ort::Value ort_view(const Tensor& tensor) {
  if (tensor.dtype == DType::string) return text_value(tensor);
  static std::byte nothing;  // an empty tensor has no memory, and a null pointer is refused
  const auto* bytes = tensor.bytes.empty() ? &nothing : tensor.bytes.data();
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  return Ort::Value::CreateTensor(memory, const_cast<std::byte*>(bytes), tensor.bytes.size(), tensor.shape.data(),
                                  tensor.shape.size(), ort_type(tensor.dtype));
}

Result<Tensor> from_ort(Ort::Value& value) {
  if (!value.IsTensor()) return Error{"is no tensor", ""};
  const auto info = value.GetTensorTypeAndShapeInfo();
  const auto dtype = dtype_numbered(info.GetElementType());
  if (!dtype) return Error{"is of a type that this program lacks", ""};
  auto tensor = Tensor::zeros(*dtype, info.GetShape());
  for (std::size_t i = 0; i < tensor.texts.size(); ++i) tensor.texts[i] = value.GetStringTensorElement(i);
  // The accessor for constants is one that libraries before 1.23 do not have.
  if (!tensor.bytes.empty()) std::memcpy(tensor.bytes.data(), value.GetTensorMutableRawData(), tensor.bytes.size());
  return tensor;
}

Result<TensorSpec> ort_spec(const std::string& name, const Ort::TypeInfo& type) {
  if (type.GetONNXType() != ONNX_TYPE_TENSOR) return Error{"'" + name + "' is no tensor", ""};
  const auto info = type.GetTensorTypeAndShapeInfo();
  const auto dtype = dtype_numbered(info.GetElementType());
  if (!dtype) return Error{"'" + name + "' is of a type that this program lacks", ""};
  const auto sizes = info.GetShape();
  std::vector<const char*> names(sizes.size());
  info.GetSymbolicDimensions(names.data(), names.size());
  TensorSpec spec{name, *dtype, {}};
  for (std::size_t i = 0; i < sizes.size(); ++i) spec.axes.push_back({sizes[i], sizes[i] < 0 ? names[i] : ""});
  return spec;
}

Error ort_error(const std::string& doing, const std::exception& error) {
  const std::string said = error.what();
  return Error{doing + ": " + said.substr(0, said.find('\n')), ""};
}

}  // namespace toolkit
