#include "growing_decoder.hpp"

#include "engine.hpp"
#include "step_feeds.hpp"

namespace toolkit {

Result<std::unique_ptr<Decoder>> GrowingDecoder::make(Engine& engine, const DecoderEntry& entry, std::int64_t limit) {
  Tensors past;
  for (const auto& spec : engine.inputs()) {
    if (spec.name == "write_indices") return Error{"a cache of fixed length is not driven by this program", ""};
    if (!is_past(spec.name) || spec.axes.size() != 4) continue;
    past[spec.name] = Tensor::zeros(spec.dtype, {1, spec.axes[1].size, 0, spec.axes[3].size});
  }
  if (static_cast<std::int64_t>(past.size()) != 2 * entry.layers) {
    return Error{"the graph has " + std::to_string(past.size()) + " cache inputs for " + std::to_string(entry.layers) +
                     " layers",
                 "Export the model again."};
  }
  return std::unique_ptr<Decoder>(new GrowingDecoder(engine, std::move(past), limit));
}

Result<std::vector<float>> GrowingDecoder::forward(const std::vector<std::int64_t>& tokens) {
  if (auto failure = check_room(*this, tokens.size())) return *failure;
  Tensors feeds;
  auto step = step_feeds(tokens, length_);
  for (const auto& spec : engine_.inputs()) {
    auto& source = is_past(spec.name) ? past_ : step;
    feeds[spec.name] = std::move(source[spec.name]);
  }
  auto outputs = engine_.run(feeds);
  if (!outputs) return outputs.error();
  for (auto& [name, tensor] : past_) tensor = std::move((*outputs)[present_of(name)]);
  length_ += static_cast<std::int64_t>(tokens.size());
  return last_logits((*outputs)["logits"]);
}

}  // namespace toolkit
