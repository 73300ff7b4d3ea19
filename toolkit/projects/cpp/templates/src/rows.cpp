#include "rows.hpp"

#include <algorithm>
#include <map>
#include <optional>

namespace toolkit {

namespace {

/// Copy the corner that both shapes share, from the origin on; everything else of `to` stays as it is.
void copy_corner(const Tensor& from, Tensor& to) {
  const auto rank = from.shape.size();
  const auto size = size_of(from.dtype);
  Shape shared(rank), place(rank, 0);
  for (std::size_t i = 0; i < rank; ++i) shared[i] = std::min(from.shape[i], to.shape[i]);
  if (count_of(shared).value_or(0) == 0) return;
  const auto offset = [&](const Shape& shape) {
    std::size_t at = 0;
    for (std::size_t i = 0; i < rank; ++i) at = at * static_cast<std::size_t>(shape[i]) + static_cast<std::size_t>(place[i]);
    return at * size;
  };
  const auto run = size * static_cast<std::size_t>(rank ? shared.back() : 1);
  while (true) {
    std::memcpy(to.bytes.data() + offset(to.shape), from.bytes.data() + offset(from.shape), run);
    std::size_t axis = rank ? rank - 1 : 0;
    while (axis > 0 && ++place[axis - 1] == shared[axis - 1]) place[--axis] = 0;
    if (axis == 0) return;
  }
}

Tensor resized(const Tensor& tensor, const Shape& shape) {
  if (tensor.shape == shape) return tensor;
  auto other = Tensor::zeros(tensor.dtype, shape);
  copy_corner(tensor, other);
  return other;
}

/// Row `row` of axis 0, [1, …].
Tensor row_of(const Tensor& tensor, std::int64_t row) {
  Shape shape = tensor.shape;
  shape[0] = 1;
  auto one = Tensor::zeros(tensor.dtype, shape);
  const auto size = one.bytes.size();
  if (size > 0) std::memcpy(one.bytes.data(), tensor.bytes.data() + static_cast<std::size_t>(row) * size, size);
  return one;
}

/// Whether the row was as all before it, [1, …]; then it is appended.
bool append_row(std::optional<Tensor>& rows, const Tensor& row) {
  if (row.shape.empty() || row.shape[0] != 1) return false;
  if (!rows) {
    rows = row;
    return true;
  }
  if (rows->dtype != row.dtype || !std::equal(rows->shape.begin() + 1, rows->shape.end(), row.shape.begin() + 1, row.shape.end())) {
    return false;
  }
  rows->shape[0] += 1;
  rows->bytes.insert(rows->bytes.end(), row.bytes.begin(), row.bytes.end());
  return true;
}

Result<Tensor> padded(const TensorSpec& spec, const Tensor& row) {
  Shape shape = row.shape;
  if (shape.size() != spec.axes.size()) {
    return Error{"input '" + spec.name + "' is " + described(row) + "; the engine takes " + described(spec), ""};
  }
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (!spec.axes[i].fixed()) continue;
    if (shape[i] > spec.axes[i].size) {
      return Error{"input '" + spec.name + "' has a row of " + described(row) + "; the engine takes " + described(spec),
                   "Give a shorter input, or export for a larger shape."};
    }
    shape[i] = spec.axes[i].size;
  }
  return resized(row, shape);
}

/// One row of an answer without what padding added: as long as the names of its axes are in the inputs.
Tensor cut(const Tensor& answer, const TensorSpec& spec, const Sizes& sizes) {
  Shape shape = answer.shape;
  for (std::size_t i = 1; i < shape.size() && i < spec.axes.size(); ++i) {
    const auto size = sizes.find(spec.axes[i].name);
    if (size != sizes.end()) shape[i] = std::min(shape[i], size->second);
  }
  if (!shape.empty()) shape[0] = std::min<std::int64_t>(shape[0], 1);
  return resized(answer, shape);
}

Result<std::int64_t> rows_of(const Tensors& inputs) {
  std::int64_t rows = -1;
  for (const auto& [name, tensor] : inputs) {
    if (tensor.shape.empty()) return Error{"input '" + name + "' has no rows to be fed one by one", ""};
    if (rows >= 0 && rows != tensor.shape[0]) return Error{"input '" + name + "' has another number of rows", ""};
    rows = tensor.shape[0];
  }
  return rows;
}

Result<Tensors> run_row(Engine& engine, const std::vector<TensorSpec>& takes, const Tensors& inputs, std::int64_t row) {
  Tensors feeds;
  for (const auto& spec : takes) {
    const auto given = inputs.find(spec.name);
    if (given == inputs.end()) return Error{"input '" + spec.name + "' of the engine is missing", ""};
    auto fed = padded(spec, row_of(given->second, row));
    if (!fed) return fed.error();
    feeds[spec.name] = std::move(*fed);
  }
  return engine.run(feeds);
}

}  // namespace

bool needs_rows(const Tensors& inputs, const std::vector<TensorSpec>& engine) {
  for (const auto& spec : engine) {
    const auto given = inputs.find(spec.name);
    if (given == inputs.end() || given->second.shape.size() != spec.axes.size()) continue;
    for (std::size_t i = 0; i < spec.axes.size(); ++i) {
      if (spec.axes[i].fixed() && spec.axes[i].size != given->second.shape[i]) return true;
    }
  }
  return false;
}

Result<Tensors> run_rows(Engine& engine, const std::vector<TensorSpec>& takes, const Tensors& inputs,
                         const std::vector<TensorSpec>& outputs, const Sizes& sizes) {
  const auto rows = rows_of(inputs);
  if (!rows) return rows.error();
  std::map<std::string, std::optional<Tensor>> whole;
  for (std::int64_t row = 0; row < *rows; ++row) {
    const auto answers = run_row(engine, takes, inputs, row);
    if (!answers) return answers.error();
    for (const auto& [name, answer] : *answers) {
      const auto* spec = find_spec(outputs, name);
      const auto one = spec ? cut(answer, *spec, sizes) : answer;
      if (!append_row(whole[name], one)) return Error{"output '" + name + "' is " + described(one) + ", not one row as others", ""};
    }
  }
  Tensors outputs_by_name;
  for (auto& [name, rows_together] : whole) outputs_by_name[name] = std::move(*rows_together);
  return outputs_by_name;
}

}  // namespace toolkit
