// Embeddings of texts, or of pictures for a vision model, and how alike they are.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "inputs.hpp"
#include "report.hpp"

namespace {

using toolkit::Error;
using toolkit::Failure;
using Vector = std::vector<double>;

double dot(const Vector& one, const Vector& other) {
  double sum = 0;
  for (std::size_t i = 0; i < one.size(); ++i) sum += one[i] * other[i];
  return sum;
}

/// A vector of zeros is like nothing.
double cosine(const Vector& one, const Vector& other) {
  const double norms = std::sqrt(dot(one, one)) * std::sqrt(dot(other, other));
  return norms > 0 ? dot(one, other) / norms : 0;
}

/// The rows of the first output [rows, width].
Failure append_rows(const toolkit::Manifest& manifest, const toolkit::Tensors& outputs, std::vector<Vector>& rows) {
  for (const auto& spec : manifest.outputs) {
    const auto found = outputs.find(spec.name);
    if (found == outputs.end() || found->second.shape.size() != 2) continue;
    const auto& tensor = found->second;
    const auto width = static_cast<std::size_t>(tensor.shape[1]);
    for (std::size_t row = 0; row < static_cast<std::size_t>(tensor.shape[0]); ++row) {
      rows.push_back(toolkit::as_doubles(tensor, row * width, width));
    }
    return std::nullopt;
  }
  return Error{"the model has no output [rows, width], so no embedding", "Give a bundle whose task is embedding."};
}

void print_vector(const std::string& name, const Vector& vector) {
  std::printf("%s: %zu dims, norm %.4f: [", name.c_str(), vector.size(), std::sqrt(dot(vector, vector)));
  for (std::size_t i = 0; i < std::min<std::size_t>(8, vector.size()); ++i) std::printf("%s%.6f", i ? ", " : "", vector[i]);
  std::printf(", …]\n");
}

void print_cosines(const std::vector<Vector>& rows) {
  std::printf("cosine similarity\n");
  for (const auto& one : rows) {
    for (const auto& other : rows) std::printf("  %9.6f", cosine(one, other));
    std::printf("\n");
  }
}

Failure embed(const std::string& folder, const std::vector<std::string>& given) {
  auto pipeline = toolkit::Pipeline::open(folder);
  if (!pipeline) return pipeline.error();
  const auto outputs = run_on(*pipeline, given);
  if (!outputs) return outputs.error();
  std::vector<Vector> rows;
  for (const auto& each : *outputs) {
    if (auto failure = append_rows(pipeline->manifest(), each, rows)) return failure;
  }
  if (rows.size() != given.size()) return Error{"the model answers another number of rows than it was given", ""};
  for (std::size_t i = 0; i < rows.size(); ++i) print_vector(given[i], rows[i]);
  if (rows.size() > 1) print_cosines(rows);
  return std::nullopt;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) {
    std::cerr << "usage: embed BUNDLE TEXT…      (for a vision model, picture files)\n";
    return kCalledWrongly;
  }
  const auto failure = embed(arguments[1], {arguments + 2, arguments + count});
  return failure ? report(*failure) : kPassed;
}
