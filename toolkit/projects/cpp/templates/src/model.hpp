// A model as its manifest declares it, whatever engine runs it.
#pragma once

#include <memory>

#include "bundle.hpp"
#include "engine.hpp"
#include "result.hpp"

namespace toolkit {

class Model {
 public:
  /// Open the bundle's engine and hold it to the manifest: names, types and ranks of inputs and outputs.
  static Result<Model> open(const Bundle& bundle);

  const std::string& ran_on() const { return engine_->ran_on(); }

  /// All outputs by name. Refuses inputs that the manifest does not declare so; an engine of one fixed shape is fed
  /// row by row.
  Result<Tensors> run(const Tensors& inputs);

  /// A cache of `limit` positions, for models that have one. The model must outlive it.
  Result<std::unique_ptr<Decoder>> decoder(std::int64_t limit);

 private:
  Model(const Manifest& manifest, std::unique_ptr<Engine> engine)
      : manifest_(manifest), engine_(std::move(engine)) {}

  Manifest manifest_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace toolkit
