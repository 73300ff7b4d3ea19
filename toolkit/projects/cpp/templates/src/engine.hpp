// What runs a model, whatever the library: ONNX Runtime or TensorRT, as the bundle's engine needs.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "decoder.hpp"
#include "result.hpp"
#include "tensor.hpp"

namespace toolkit {

class Engine {
 public:
  virtual ~Engine() = default;

  /// What the graph or engine itself declares.
  virtual const std::vector<TensorSpec>& inputs() const = 0;
  virtual const std::vector<TensorSpec>& outputs() const = 0;
  /// Library, version and device, as `onnxruntime 1.32.0 CPUExecutionProvider`.
  virtual const std::string& ran_on() const = 0;
  /// All outputs by name. The inputs are those that are declared, in their types.
  virtual Result<Tensors> run(const Tensors& inputs) = 0;
  /// A language model's cache of `limit` positions. The engine must outlive it.
  virtual Result<std::unique_ptr<Decoder>> decoder(const DecoderEntry& entry, std::int64_t limit);
};

/// Open the bundle's engine: a compiled one with TensorRT, else its graph with ONNX Runtime. The error says what is
/// missing where this program cannot.
Result<std::unique_ptr<Engine>> open_engine(const Bundle& bundle);

}  // namespace toolkit
