// Feeding an engine of one fixed shape: row by row, padded with zeros up to what it takes.
#pragma once

#include <vector>

#include "engine.hpp"
#include "shapes.hpp"

namespace toolkit {

/// Whether the engine's sizes are fixed where these inputs have others.
bool needs_rows(const Tensors& inputs, const std::vector<TensorSpec>& engine);

/// Run single rows of axis 0 and put the answers together again; an axis that is named in `outputs` is cut to the size
/// which that name has in `sizes`. Refuses an input that is larger than the engine's size.
Result<Tensors> run_rows(Engine& engine, const std::vector<TensorSpec>& takes, const Tensors& inputs,
                         const std::vector<TensorSpec>& outputs, const Sizes& sizes);

}  // namespace toolkit
