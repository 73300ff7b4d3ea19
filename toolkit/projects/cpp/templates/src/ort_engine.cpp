#include "ort_engine.hpp"

#include <map>

#include "ort_decoder.hpp"
#include "ort_library.hpp"
#include "ort_values.hpp"

namespace toolkit {

namespace {

using Provider = std::string;  // as ONNX Runtime spells it

Ort::Env& environment() {
  static Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "toolkit");
  return env;
}

/// Without VNNI, products of u8 and s8 are summed with an instruction that saturates: then weights become u8 at load.
bool int8_products_saturate() {
#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
  return !__builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

Ort::SessionOptions common_options() {
  Ort::SessionOptions options;
  options.SetLogSeverityLevel(3);
  // ONNX Runtime 1.32 would turn int8 activations into uint8 halfway and refuse its own graph (onnxruntime#25526).
  options.AddConfigEntry("session.qdqisint8allowed", "1");
  return options;
}

void append_cuda(Ort::SessionOptions& options) {
  OrtCUDAProviderOptionsV2* cuda = nullptr;
  Ort::ThrowOnError(Ort::GetApi().CreateCUDAProviderOptions(&cuda));
  const std::unique_ptr<OrtCUDAProviderOptionsV2, decltype(Ort::GetApi().ReleaseCUDAProviderOptions)> owner(
      cuda, Ort::GetApi().ReleaseCUDAProviderOptions);
  options.AppendExecutionProvider_CUDA_V2(*cuda);
}

void append_tensorrt(Ort::SessionOptions& options) {
  OrtTensorRTProviderOptionsV2* trt = nullptr;
  Ort::ThrowOnError(Ort::GetApi().CreateTensorRTProviderOptions(&trt));
  const std::unique_ptr<OrtTensorRTProviderOptionsV2, decltype(Ort::GetApi().ReleaseTensorRTProviderOptions)> owner(
      trt, Ort::GetApi().ReleaseTensorRTProviderOptions);
  options.AppendExecutionProvider_TensorRT_V2(*trt);
}

Provider add_provider(const Manifest& manifest, Ort::SessionOptions& options) {
  if (manifest.runtime == "ort-trt") append_tensorrt(options);
  if (manifest.runtime == "ort-trt" || manifest.runtime == "ort-cuda") append_cuda(options);
  if (manifest.runtime == "ort-trt") return "TensorrtExecutionProvider";
  return manifest.runtime == "ort-cuda" ? "CUDAExecutionProvider" : "CPUExecutionProvider";
}

class OrtEngine final : public Engine {
 public:
  OrtEngine(Ort::Session session, std::string ran_on) : session_(std::move(session)), ran_on_(std::move(ran_on)) {}

  /// Read what the session declares.
  Failure describe() {
    Ort::AllocatorWithDefaultOptions allocator;
    for (std::size_t i = 0; i < session_.GetInputCount(); ++i) {
      auto spec = ort_spec(session_.GetInputNameAllocated(i, allocator).get(), session_.GetInputTypeInfo(i));
      if (!spec) return spec.error();
      inputs_.push_back(std::move(*spec));
    }
    for (std::size_t i = 0; i < session_.GetOutputCount(); ++i) {
      auto spec = ort_spec(session_.GetOutputNameAllocated(i, allocator).get(), session_.GetOutputTypeInfo(i));
      if (!spec) return spec.error();
      outputs_.push_back(std::move(*spec));
    }
    return std::nullopt;
  }

  const std::vector<TensorSpec>& inputs() const override { return inputs_; }
  const std::vector<TensorSpec>& outputs() const override { return outputs_; }
  const std::string& ran_on() const override { return ran_on_; }

  Result<Tensors> run(const Tensors& inputs) override {
    return guarded("the run failed", [&]() -> Result<Tensors> { return run_unguarded(inputs); });
  }

  Result<std::unique_ptr<Decoder>> decoder(const DecoderEntry& entry, std::int64_t limit) override {
    return guarded("no decoder", [&]() -> Result<std::unique_ptr<Decoder>> {
      if (keeps_cache_in_place(session_)) return open_ort_decoder(session_, inputs_, outputs_, entry, limit);
      return Engine::decoder(entry, limit);
    });
  }

 private:
  Result<Tensors> run_unguarded(const Tensors& inputs) {
    std::vector<const char*> input_names, output_names;
    std::vector<Ort::Value> values;
    for (const auto& [name, tensor] : inputs) {
      input_names.push_back(name.c_str());
      values.push_back(ort_view(tensor));
    }
    for (const auto& spec : outputs_) output_names.push_back(spec.name.c_str());
    auto answers = session_.Run(Ort::RunOptions{nullptr}, input_names.data(), values.data(), values.size(),
                                output_names.data(), output_names.size());
    Tensors outputs;
    for (std::size_t i = 0; i < answers.size(); ++i) {
      auto tensor = from_ort(answers[i]);
      if (!tensor) return Error{"output '" + outputs_[i].name + "' " + tensor.error().message, ""};
      outputs[outputs_[i].name] = std::move(*tensor);
    }
    return outputs;
  }

  Ort::Session session_;
  std::string ran_on_;
  std::vector<TensorSpec> inputs_, outputs_;
};

Result<std::unique_ptr<Engine>> open_session(const std::filesystem::path& path, const Ort::SessionOptions& options,
                                             const std::string& ran_on) {
  auto engine = std::make_unique<OrtEngine>(Ort::Session(environment(), path.c_str(), options), ran_on);
  if (auto failure = engine->describe()) return *failure;
  return std::unique_ptr<Engine>(std::move(engine));
}

}  // namespace

Result<std::unique_ptr<Engine>> open_ort_engine(const Bundle& bundle) {
  const auto version = ort_library();
  if (!version) return version.error();
  const auto& manifest = bundle.manifest;
  return guarded(manifest.ort_file() + " does not open", [&]() -> Result<std::unique_ptr<Engine>> {
    auto options = common_options();
    // Graphs whose weights alone are integers must do without: ONNX Runtime 1.32 fails at load with it.
    if (manifest.scheme.rfind("int8", 0) == 0 && int8_products_saturate()) {
      options.AddConfigEntry("session.x64quantprecision", "1");
    }
    const auto provider = add_provider(manifest, options);
    return open_session(bundle.path(manifest.ort_file()), options, "onnxruntime " + *version + " " + provider);
  });
}

Result<std::unique_ptr<Engine>> open_ort_graph(const std::filesystem::path& path, const std::string& extensions) {
  const auto version = ort_library();
  if (!version) return version.error();
  return guarded(path.filename().string() + " does not open", [&]() -> Result<std::unique_ptr<Engine>> {
    auto options = common_options();
    if (!extensions.empty()) {
      options.RegisterCustomOpsLibrary(std::filesystem::path(extensions).c_str(), Ort::CustomOpConfigs{});
    }
    return open_session(path, options, "onnxruntime " + *version + " CPUExecutionProvider");
  });
}

}  // namespace toolkit
