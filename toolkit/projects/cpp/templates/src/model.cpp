#include "model.hpp"

#include "rows.hpp"
#include "shapes.hpp"

namespace toolkit {

Result<Model> Model::open(const Bundle& bundle) {
  const auto& manifest = bundle.manifest;
  auto engine = open_engine(bundle);
  if (!engine) return engine.error();
  const auto& inputs = manifest.engine_inputs.empty() ? manifest.inputs : manifest.engine_inputs;
  const auto& outputs = manifest.engine_outputs.empty() ? manifest.outputs : manifest.engine_outputs;
  if (auto failure = check_declared("input", (*engine)->inputs(), inputs)) return *failure;
  if (auto failure = check_declared("output", (*engine)->outputs(), outputs)) return *failure;
  return Model(manifest, std::move(*engine));
}

Result<Tensors> Model::run(const Tensors& inputs) {
  const auto sizes = check_inputs(inputs, manifest_.inputs, manifest_.dims);
  if (!sizes) return sizes.error();
  const auto& takes = manifest_.engine_inputs.empty() ? engine_->inputs() : manifest_.engine_inputs;
  if (needs_rows(inputs, takes)) return run_rows(*engine_, takes, inputs, manifest_.outputs, *sizes);
  return engine_->run(inputs);
}

Result<std::unique_ptr<Decoder>> Model::decoder(std::int64_t limit) {
  if (!manifest_.decoder) return Error{"model '" + manifest_.name + "' is no language model", ""};
  if (limit < 1 || limit > manifest_.decoder->context) {
    return Error{"a cache of " + std::to_string(limit) + " positions; the model takes 1 to " +
                     std::to_string(manifest_.decoder->context),
                 "Give another --context, or a shorter prompt."};
  }
  return engine_->decoder(*manifest_.decoder, limit);
}

}  // namespace toolkit
