// Whether tensors are what was declared.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "manifest.hpp"
#include "result.hpp"
#include "tensor.hpp"

namespace toolkit {

/// The size of every named axis.
using Sizes = std::map<std::string, std::int64_t>;

/// The sizes that the inputs give to the names in `specs`. Refuses another set of inputs, another type or rank, another
/// size than a fixed one, two sizes for one name, and a size outside its range in `dims`.
Result<Sizes> check_inputs(const Tensors& inputs, const std::vector<TensorSpec>& specs,
                           const std::map<std::string, Range>& dims);

/// Why what an engine has is not what is declared: names, types and ranks; `word` is `input` or `output`.
[[nodiscard]] Failure check_declared(const std::string& word, const std::vector<TensorSpec>& has,
                                     const std::vector<TensorSpec>& declared);

const TensorSpec* find_spec(const std::vector<TensorSpec>& specs, const std::string& name);

}  // namespace toolkit
