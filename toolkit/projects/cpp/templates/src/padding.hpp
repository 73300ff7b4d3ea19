// What a model answers at positions that nobody attends to has no meaning, so it is not drift.
#pragma once

#include "manifest.hpp"
#include "tensor.hpp"

namespace toolkit {

/// Set an output to zero at positions whose `attention_mask` is 0, where it has the axes of the mask, or else those of
/// `input_ids`, by their names and once each. Values that are NaN or infinite stay.
void clear_padding(Tensor& output, const TensorSpec& spec, const Tensors& inputs, const Manifest& manifest);

}  // namespace toolkit
