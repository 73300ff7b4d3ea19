// Between this program's tensors and ONNX Runtime's, and from its exceptions to values.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <string>
#include <vector>

#include "result.hpp"
#include "tensor.hpp"

namespace toolkit {

/// A view of the tensor, which must outlive it; texts are copied.
Ort::Value ort_view(const Tensor& tensor);

/// A copy of what ONNX Runtime answered. Refuses values that are no tensors, or of a type that this program lacks.
Result<Tensor> from_ort(Ort::Value& value);

/// What a session says of one of its inputs or outputs.
Result<TensorSpec> ort_spec(const std::string& name, const Ort::TypeInfo& type);

/// The first line of what ONNX Runtime said.
Error ort_error(const std::string& doing, const std::exception& error);

/// Calls something that may throw, as ONNX Runtime's C++ API does, and answers its exception as an error.
template <typename Call>
auto guarded(const std::string& doing, Call call) -> decltype(call()) {
  try {
    return call();
  } catch (const std::exception& error) {
    return ort_error(doing, error);
  }
}

}  // namespace toolkit
