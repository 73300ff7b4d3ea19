#include "padding.hpp"

#include <cmath>
#include <optional>
#include <utility>

#include "shapes.hpp"

namespace toolkit {

namespace {

constexpr const char* kMask = "attention_mask";

std::optional<std::size_t> place_of(const TensorSpec& output, const Axis& axis) {
  std::optional<std::size_t> found;
  for (std::size_t i = 0; i < output.axes.size(); ++i) {
    if (output.axes[i].size != axis.size || output.axes[i].name != axis.name) continue;
    if (found) return std::nullopt;
    found = i;
  }
  return found;
}

/// Where the output has the rows and the positions of the mask, or of the tokens.
std::optional<std::pair<std::size_t, std::size_t>> places(const TensorSpec& output, const Manifest& manifest) {
  for (const auto& input : manifest.inputs) {
    if ((input.name != kMask && input.name != "input_ids") || input.axes.size() != 2) continue;
    const auto row = place_of(output, input.axes[0]), position = place_of(output, input.axes[1]);
    if (row && position) return std::pair{*row, *position};
  }
  return std::nullopt;
}

std::size_t elements_after(const Shape& shape, std::size_t axis) {
  std::size_t count = 1;
  for (std::size_t i = axis + 1; i < shape.size(); ++i) count *= static_cast<std::size_t>(shape[i]);
  return count;
}

void clear_where_finite(Tensor& tensor, std::size_t index) {
  if (!std::isfinite(as_doubles(tensor, index, 1)[0])) return;
  const auto size = size_of(tensor.dtype);
  std::memset(tensor.bytes.data() + index * size, 0, size);
}

}  // namespace

void clear_padding(Tensor& output, const TensorSpec& spec, const Tensors& inputs, const Manifest& manifest) {
  const auto given = inputs.find(kMask);
  const auto found = places(spec, manifest);
  if (given == inputs.end() || !found || output.shape.size() != spec.axes.size()) return;
  const auto& mask = given->second;
  const auto [row_axis, position_axis] = *found;
  if (mask.shape.size() != 2 || output.shape[row_axis] != mask.shape[0]) return;
  const auto positions = output.shape[position_axis], skipped = mask.shape[1] - positions;
  if (skipped < 0) return;
  const auto attended = as_doubles(mask, 0, mask.count());
  const auto row_step = elements_after(output.shape, row_axis), step = elements_after(output.shape, position_axis);
  for (std::size_t i = 0; i < output.count(); ++i) {
    const auto row = i / row_step % static_cast<std::size_t>(output.shape[row_axis]);
    const auto position = i / step % static_cast<std::size_t>(positions) + static_cast<std::size_t>(skipped);
    if (attended[row * static_cast<std::size_t>(mask.shape[1]) + position] == 0) clear_where_finite(output, i);
  }
}

}  // namespace toolkit
