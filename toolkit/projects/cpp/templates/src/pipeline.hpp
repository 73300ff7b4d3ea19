// A bundle as an app uses it: texts or pictures in, answers out.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "engine.hpp"
#include "model.hpp"
#include "result.hpp"

namespace toolkit {

class Pipeline {
 public:
  /// Open the bundle's model, and the graphs around it as far as this program can run them; files are verified.
  static Result<Pipeline> open(const std::filesystem::path& folder);

  const Manifest& manifest() const { return bundle_.manifest; }
  const Bundle& bundle() const { return bundle_; }
  Model& model() { return model_; }

  /// The model's inputs for some texts, one row each. Refuses bundles whose tokenizer no graph carries.
  Result<Tensors> from_texts(const std::vector<std::string>& texts);
  /// The model's inputs for a picture, uint8 [height, width, channels].
  Result<Tensors> from_image(const Tensor& pixels);
  /// Run the model.
  Result<Tensors> run(const Tensors& inputs) { return model_.run(inputs); }
  /// Whether a graph makes answers of the model's outputs.
  bool answers() const { return postprocess_ != nullptr; }
  /// What the graph after the model makes of its outputs, or of other tensors that it takes.
  Result<Tensors> finish(const Tensors& outputs);

 private:
  Pipeline(Bundle bundle, Model model) : bundle_(std::move(bundle)), model_(std::move(model)) {}

  Bundle bundle_;
  Model model_;
  std::unique_ptr<Engine> preprocess_, postprocess_;
};

}  // namespace toolkit
