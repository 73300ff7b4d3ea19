#include "shapes.hpp"

namespace toolkit {

namespace {

std::string names_of(const std::vector<TensorSpec>& specs) {
  std::string names;
  for (const auto& spec : specs) names += (names.empty() ? "" : ", ") + spec.name;
  return names;
}

bool fits(const Tensor& tensor, const TensorSpec& spec) {
  if (tensor.dtype != spec.dtype || tensor.shape.size() != spec.axes.size()) return false;
  for (std::size_t i = 0; i < spec.axes.size(); ++i) {
    if (spec.axes[i].fixed() && spec.axes[i].size != tensor.shape[i]) return false;
  }
  return true;
}

Failure check_range(const std::string& input, const std::string& axis, std::int64_t size,
                    const std::map<std::string, Range>& dims) {
  const auto range = dims.find(axis);
  if (range == dims.end() || (size >= range->second.least && size <= range->second.most)) return std::nullopt;
  return Error{"input '" + input + "' has " + axis + " " + std::to_string(size) + "; the model takes " +
                   std::to_string(range->second.least) + " to " + std::to_string(range->second.most),
               "Split the input, or export again with a larger --dim."};
}

Failure check_one(const Tensor& tensor, const TensorSpec& spec, const std::map<std::string, Range>& dims,
                  Sizes& sizes) {
  const auto subject = "input '" + spec.name + "'";
  if (!fits(tensor, spec)) {
    return Error{subject + " is " + described(tensor) + "; the model takes " + described(spec), ""};
  }
  for (std::size_t i = 0; i < spec.axes.size(); ++i) {
    if (spec.axes[i].fixed()) continue;
    const auto& name = spec.axes[i].name;
    if (auto failure = check_range(spec.name, name, tensor.shape[i], dims)) return failure;
    const auto known = sizes.emplace(name, tensor.shape[i]).first->second;
    if (known != tensor.shape[i]) {
      return Error{subject + " has " + name + " " + std::to_string(tensor.shape[i]) + " where another input has " +
                       std::to_string(known),
                   ""};
    }
  }
  return std::nullopt;
}

}  // namespace

const TensorSpec* find_spec(const std::vector<TensorSpec>& specs, const std::string& name) {
  for (const auto& spec : specs) {
    if (spec.name == name) return &spec;
  }
  return nullptr;
}

Result<Sizes> check_inputs(const Tensors& inputs, const std::vector<TensorSpec>& specs,
                           const std::map<std::string, Range>& dims) {
  for (const auto& [name, tensor] : inputs) {
    if (!find_spec(specs, name)) return Error{"there is no input '" + name + "'; the model takes " + names_of(specs), ""};
  }
  Sizes sizes;
  for (const auto& spec : specs) {
    const auto given = inputs.find(spec.name);
    if (given == inputs.end()) return Error{"input '" + spec.name + "' is missing; the model takes " + names_of(specs), ""};
    if (auto failure = check_one(given->second, spec, dims, sizes)) return *failure;
  }
  return sizes;
}

Failure check_declared(const std::string& word, const std::vector<TensorSpec>& has,
                       const std::vector<TensorSpec>& declared) {
  for (const auto& spec : declared) {
    const auto* own = find_spec(has, spec.name);
    if (!own) return Error{"the engine has no " + word + " '" + spec.name + "'; it has " + names_of(has), ""};
    if (own->dtype != spec.dtype || own->axes.size() != spec.axes.size()) {
      return Error{word + " '" + spec.name + "' of the engine is " + described(*own) + "; the manifest declares " +
                       described(spec),
                   ""};
    }
  }
  if (has.size() == declared.size()) return std::nullopt;
  return Error{"the engine has the " + word + "s " + names_of(has) + "; the manifest declares " + names_of(declared), ""};
}

}  // namespace toolkit
