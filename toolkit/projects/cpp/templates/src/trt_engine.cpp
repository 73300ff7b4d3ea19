#include "trt_engine.hpp"

#include <NvInferRuntime.h>

#include <algorithm>
#include <map>
#include <new>
#include <optional>

#include "cuda_memory.hpp"
#include "files.hpp"
#include "profile_choice.hpp"

namespace toolkit {

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

/// Keeps the last thing that TensorRT complained of.
class Log final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    try {
      last_ = message;
    } catch (const std::bad_alloc&) {
      last_.clear();
    }
  }
  Error error(const std::string& what, const std::string& hint = "") const {
    return Error{last_.empty() ? what : what + ": " + last_, hint};
  }

 private:
  std::string last_;
};

std::optional<DType> dtype_from(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return DType::float32;
    case DataType::kHALF: return DType::float16;
    case DataType::kBF16: return DType::bfloat16;
    case DataType::kINT8: return DType::int8;
    case DataType::kUINT8: return DType::uint8;
    case DataType::kINT32: return DType::int32;
    case DataType::kINT64: return DType::int64;
    case DataType::kBOOL: return DType::boolean;
    default: return std::nullopt;
  }
}

Shape shape_from(const Dims& dims) { return Shape(dims.d, dims.d + dims.nbDims); }

Dims dims_from(const Shape& shape) {
  Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  for (std::size_t i = 0; i < shape.size(); ++i) dims.d[i] = shape[i];
  return dims;
}

class TrtEngine final : public Engine {
 public:
  /// Deserialize the engine, make its context, and read what it declares.
  Failure load(const std::string& content, const Device& device, const Manifest& manifest) {
    auto stream = Stream::make();
    if (!stream) return stream.error();
    stream_ = std::move(*stream);
    const std::string rebuild = "It loads only with the version that built it, " + manifest.builder + ".";
    runtime_.reset(nvinfer1::createInferRuntime(log_));
    if (!runtime_) return log_.error("TensorRT does not start");
    engine_.reset(runtime_->deserializeCudaEngine(content.data(), content.size()));
    if (!engine_) return log_.error("TensorRT does not load the engine", rebuild);
    context_.reset(engine_->createExecutionContext());
    if (!context_) return log_.error("there is no context for the engine", "The GPU's memory may be full.");
    ran_on_ = "tensorrt " + std::to_string(getInferLibMajorVersion()) + "." + std::to_string(getInferLibMinorVersion()) +
              " " + device.name;
    return describe();
  }

  const std::vector<TensorSpec>& inputs() const override { return inputs_; }
  const std::vector<TensorSpec>& outputs() const override { return outputs_; }
  const std::string& ran_on() const override { return ran_on_; }

  Result<Tensors> run(const Tensors& inputs) override {
    if (auto failure = set_shapes(inputs)) return *failure;
    for (const auto& [name, tensor] : inputs) {
      if (auto failure = send(name, tensor)) return *failure;
    }
    Tensors outputs;
    for (const auto& spec : outputs_) {
      if (auto failure = prepare(spec, outputs[spec.name])) return *failure;
    }
    if (!context_->enqueueV3(stream_->handle())) return log_.error("the engine did not run");
    for (auto& [name, tensor] : outputs) {
      if (auto failure = fetch(name, tensor)) return *failure;
    }
    if (auto failure = stream_->wait()) return *failure;
    return outputs;
  }

 private:
  Failure describe() {
    for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
      const char* name = engine_->getIOTensorName(i);
      if (engine_->getTensorLocation(name) != nvinfer1::TensorLocation::kDEVICE) {
        return Error{"'" + std::string(name) + "' is a tensor of sizes, which TensorRT reads on the host", ""};
      }
      const auto dtype = dtype_from(engine_->getTensorDataType(name));
      if (!dtype) return Error{"'" + std::string(name) + "' is of a type that this program lacks", ""};
      TensorSpec spec{name, *dtype, {}};
      for (const auto size : shape_from(engine_->getTensorShape(name))) spec.axes.push_back({size, size < 0 ? "?" : ""});
      const bool input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
      (input ? inputs_ : outputs_).push_back(std::move(spec));
    }
    for (std::int32_t i = 0; i < std::max(engine_->getNbOptimizationProfiles(), 1); ++i) profiles_.push_back(profile(i));
    return std::nullopt;
  }

  Profile profile(std::int32_t index) const {
    Profile ranges;
    for (const auto& spec : inputs_) {
      const char* name = spec.name.c_str();
      auto least = shape_from(engine_->getTensorShape(name)), most = least;
      if (std::count(least.begin(), least.end(), -1) > 0) {
        least = shape_from(engine_->getProfileShape(name, index, nvinfer1::OptProfileSelector::kMIN));
        most = shape_from(engine_->getProfileShape(name, index, nvinfer1::OptProfileSelector::kMAX));
      }
      ranges[spec.name] = {least, most};
    }
    return ranges;
  }

  Failure set_shapes(const Tensors& inputs) {
    std::map<std::string, Shape> shapes;
    for (const auto& [name, tensor] : inputs) shapes[name] = tensor.shape;
    const auto chosen = choose_profile(profiles_, shapes);
    if (!chosen) return chosen.error();
    if (*chosen != profile_ && !context_->setOptimizationProfileAsync(*chosen, stream_->handle())) {
      return log_.error("the engine's profile " + std::to_string(*chosen) + " is not free");
    }
    profile_ = *chosen;
    for (const auto& [name, shape] : shapes) {
      if (!context_->setInputShape(name.c_str(), dims_from(shape))) {
        return log_.error("input '" + name + "' does not take the shape " + spelled(shape));
      }
    }
    return std::nullopt;
  }

  Failure bind(const std::string& name, std::size_t bytes) {
    auto& buffer = buffers_[name];
    if (auto failure = buffer.reserve(bytes)) return failure;
    if (context_->setTensorAddress(name.c_str(), buffer.address())) return std::nullopt;
    return log_.error("'" + name + "' does not take its address");
  }

  Failure send(const std::string& name, const Tensor& tensor) {
    if (auto failure = bind(name, tensor.bytes.size())) return failure;
    return cuda_failure("'" + name + "' does not go to the GPU",
                        cudaMemcpyAsync(buffers_[name].address(), tensor.bytes.data(), tensor.bytes.size(),
                                        cudaMemcpyHostToDevice, stream_->handle()));
  }

  Failure prepare(const TensorSpec& spec, Tensor& output) {
    const auto shape = shape_from(context_->getTensorShape(spec.name.c_str()));
    if (!count_of(shape)) return Error{"the size of output '" + spec.name + "' depends on the inputs' values", ""};
    output = Tensor::zeros(spec.dtype, shape);
    return bind(spec.name, output.bytes.size());
  }

  Failure fetch(const std::string& name, Tensor& tensor) {
    return cuda_failure("'" + name + "' does not come from the GPU",
                        cudaMemcpyAsync(tensor.bytes.data(), buffers_[name].address(), tensor.bytes.size(),
                                        cudaMemcpyDeviceToHost, stream_->handle()));
  }

  // Freed from the last to the first: the context before its engine, that before the runtime.
  Log log_;
  std::unique_ptr<Stream> stream_;
  std::map<std::string, DeviceBuffer> buffers_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::vector<TensorSpec> inputs_, outputs_;
  std::vector<Profile> profiles_;
  int profile_ = 0;
  std::string ran_on_;
};

Result<std::string> engine_file(const Manifest& manifest, const Device& device) {
  std::string known;
  for (const auto& [architecture, file] : manifest.engines) known += (known.empty() ? "" : ", ") + architecture;
  if (known.empty()) return Error{"the bundle has no engine, only its graph: " + manifest.engine_reason, ""};
  const auto found = manifest.engines.find(device.architecture);
  if (found != manifest.engines.end()) return found->second;
  return Error{"no engine for " + device.name + " (" + device.architecture + ")",
               "The bundle has: " + known + ". Export again with --arch " + device.architecture + "."};
}

}  // namespace

Result<std::unique_ptr<Engine>> open_trt_engine(const Bundle& bundle) {
  const auto device = first_device();
  if (!device) return device.error();
  const auto file = engine_file(bundle.manifest, *device);
  if (!file) return file.error();
  const auto content = read_file(bundle.path(*file));
  if (!content) return Error{*file + ": " + content.error().message, ""};
  auto engine = std::make_unique<TrtEngine>();
  if (auto failure = engine->load(*content, *device, bundle.manifest)) return *failure;
  return std::unique_ptr<Engine>(std::move(engine));
}

}  // namespace toolkit
