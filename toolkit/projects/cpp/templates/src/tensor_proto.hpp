// ONNX TensorProto messages (onnx.proto3), read from protobuf's wire format: what golden inputs are stored as.
#pragma once

#include <string>
#include <string_view>

#include "result.hpp"
#include "tensor.hpp"

namespace toolkit {

struct NamedTensor {
  std::string name;
  Tensor tensor;
};

/// Read one message. Refuses truncated ones, types without a fixed size, and tensors whose data lies elsewhere.
Result<NamedTensor> read_tensor_proto(std::string_view bytes);

}  // namespace toolkit
