// The likeliest classes of pictures (PPM, PGM or BMP files), or of texts, with their shares.
#include <algorithm>
#include <cstdio>
#include <numeric>

#include "inputs.hpp"
#include "report.hpp"
#include "sampling.hpp"

namespace {

using toolkit::Error;
using toolkit::Failure;

constexpr std::size_t kShown = 5;

/// The logits [rows, classes] of the first output of that rank.
toolkit::Result<toolkit::Tensor> logits_of(const toolkit::Manifest& manifest, const toolkit::Tensors& outputs) {
  for (const auto& spec : manifest.outputs) {
    const auto found = outputs.find(spec.name);
    if (found != outputs.end() && found->second.shape.size() == 2) return found->second;
  }
  return Error{"the model has no output [rows, classes]", "Give a bundle whose task is a classification."};
}

void print_row(const std::string& name, const std::vector<double>& shares, const std::vector<std::string>& labels) {
  std::vector<std::size_t> order(shares.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return shares[a] > shares[b]; });
  std::printf("%s:", name.c_str());
  for (std::size_t i = 0; i < std::min(kShown, order.size()); ++i) {
    const auto index = order[i];
    const auto label = index < labels.size() ? labels[index] : std::to_string(index);
    std::printf("%s %s %.2f%%", i ? " " : "", label.c_str(), 100 * shares[index]);
  }
  std::printf("\n");
}

/// Print the rows of one run, which are those of `names` from `first_name` on.
Failure print_rows(const toolkit::Manifest& manifest, const toolkit::Tensors& outputs,
                   const std::vector<std::string>& names, std::size_t first_name) {
  const auto logits = logits_of(manifest, outputs);
  if (!logits) return logits.error();
  if (static_cast<std::size_t>(logits->shape[0]) > names.size() - first_name) {
    return Error{"the model answers another number of rows than it was given", ""};
  }
  const auto values = toolkit::as_floats(*logits);
  const auto width = logits->shape[1];
  for (std::int64_t row = 0; row < logits->shape[0]; ++row) {
    const auto first = values.begin() + row * width;
    print_row(names[first_name + static_cast<std::size_t>(row)], toolkit::shares({first, first + width}, 1, 1), manifest.labels);
  }
  return std::nullopt;
}

Failure classify(const std::string& folder, const std::vector<std::string>& given) {
  auto pipeline = toolkit::Pipeline::open(folder);
  if (!pipeline) return pipeline.error();
  const auto& manifest = pipeline->manifest();
  if (manifest.task.find("classification") == std::string::npos) {
    return Error{"the bundle's task is " + manifest.task, "Give a bundle whose task is a classification."};
  }
  const auto outputs = run_on(*pipeline, given);
  if (!outputs) return outputs.error();
  std::size_t row = 0;
  for (const auto& each : *outputs) {
    if (auto failure = print_rows(manifest, each, given, row)) return failure;
    ++row;
  }
  return std::nullopt;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) {
    std::cerr << "usage: classify BUNDLE PICTURE…      (for a text model, texts)\n";
    return kCalledWrongly;
  }
  const auto failure = classify(arguments[1], {arguments + 2, arguments + count});
  return failure ? report(*failure) : kPassed;
}
