#include "pipeline.hpp"

#include "processing.hpp"
#include "shapes.hpp"

namespace toolkit {

namespace {

Error no_graph(const std::string& what, const ProcessingEntry& entry) {
  return Error{"this bundle cannot take " + what + ": " + lacking(entry),
               "Feed the model its own inputs through toolkit::Model, or export again with a toolkit that makes them."};
}

/// Only what the graph takes, by name.
Tensors picked(const Tensors& tensors, const std::vector<TensorSpec>& wanted) {
  Tensors found;
  for (const auto& spec : wanted) {
    if (const auto given = tensors.find(spec.name); given != tensors.end()) found.insert(*given);
  }
  return found;
}

}  // namespace

Result<Pipeline> Pipeline::open(const std::filesystem::path& folder) {
  auto bundle = open_bundle(folder);
  if (!bundle) return bundle.error();
  if (auto failure = verify_files(*bundle)) return *failure;
  auto model = Model::open(*bundle);
  if (!model) return model.error();
  Pipeline pipeline(std::move(*bundle), std::move(*model));
  const auto& manifest = pipeline.manifest();
  for (auto [entry, graph] : {std::pair{&manifest.preprocess, &pipeline.preprocess_},
                              std::pair{&manifest.postprocess, &pipeline.postprocess_}}) {
    if (!lacking(*entry).empty()) continue;
    auto opened = open_processing(pipeline.bundle_, *entry);
    if (!opened) return opened.error();
    *graph = std::move(*opened);
  }
  return pipeline;
}

Result<Tensors> Pipeline::from_texts(const std::vector<std::string>& texts) {
  if (!preprocess_) return no_graph("texts", manifest().preprocess);
  for (const auto& spec : preprocess_->inputs()) {
    if (spec.dtype != DType::string) continue;
    auto made = preprocess_->run({{spec.name, Tensor::of_texts(texts)}});
    if (!made) return made.error();
    return picked(*made, manifest().inputs);
  }
  return Error{"this bundle takes pictures, not texts", "Give picture files."};
}

Result<Tensors> Pipeline::from_image(const Tensor& pixels) {
  if (!preprocess_) return no_graph("pictures", manifest().preprocess);
  Tensors feeds;
  for (const auto& spec : preprocess_->inputs()) {
    if (spec.dtype == DType::string) return Error{"this bundle takes texts, not pictures", "Give texts."};
    if (spec.dtype == DType::uint8) {
      feeds[spec.name] = pixels;
    } else if (spec.name == "orientation" && spec.dtype == DType::int64) {
      // The formats that are read here have no EXIF: 1 is upright.
      const auto rank = spec.axes.size();
      feeds[spec.name] = Tensor::of<std::int64_t>(Shape(rank, 1), {1});
    }
  }
  auto made = preprocess_->run(feeds);
  if (!made) return made.error();
  return picked(*made, manifest().inputs);
}

Result<Tensors> Pipeline::finish(const Tensors& outputs) {
  if (!postprocess_) return no_graph("that for an answer", manifest().postprocess);
  return postprocess_->run(picked(outputs, postprocess_->inputs()));
}

}  // namespace toolkit
