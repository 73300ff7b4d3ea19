#include "selftest_processing.hpp"

#include <cmath>

#include "processing.hpp"

namespace toolkit {

namespace {

bool is_float(DType dtype) {
  return dtype == DType::float32 || dtype == DType::float16 || dtype == DType::float64 || dtype == DType::bfloat16;
}

bool near(const Tensor& expected, const Tensor& answer, double bound) {
  const auto left = as_doubles(expected, 0, expected.count()), right = as_doubles(answer, 0, answer.count());
  for (std::size_t i = 0; i < left.size(); ++i) {
    if (!(std::abs(left[i] - right[i]) <= bound)) return false;  // NaN is near nothing
  }
  return true;
}

bool same(const Tensor& expected, const Tensor& answer, double bound) {
  if (expected.shape != answer.shape || expected.dtype != answer.dtype) return false;
  if (is_float(expected.dtype)) return near(expected, answer, bound);
  return expected.bytes == answer.bytes && expected.texts == answer.texts;
}

/// The first output of a sample that differs or is missing; empty where none does.
std::string differing(const ProcessingEntry& entry, const Sample& sample, const Tensors& answers) {
  for (const auto& spec : entry.outputs) {
    const auto expected = sample.outputs.find(spec.name), answer = answers.find(spec.name);
    if (expected == sample.outputs.end() || answer == answers.end()) return spec.name;
    if (!same(expected->second, answer->second, entry.bound)) return spec.name;
  }
  return "";
}

std::string spelled_bound(const ProcessingEntry& entry) {
  for (const auto& spec : entry.outputs) {
    char text[32];
    std::snprintf(text, sizeof text, "within %.1e", entry.bound);
    if (is_float(spec.dtype)) return text;
  }
  return "equal";
}

Failure tell(const std::string& place, const ProcessingEntry& entry, std::size_t samples, std::size_t differ,
             const std::string& first, std::ostream& out) {
  if (differ == 0) {
    out << place << " " << samples << " samples " << spelled_bound(entry) << "\n";
    return std::nullopt;
  }
  if (!entry.exact) {
    out << place << " " << differ << " of " << samples << " samples differ, which fails nothing: " << entry.reason << "\n";
    return std::nullopt;
  }
  return Error{place + ": " + first + (entry.needs.empty() ? " differs from the processor's" : " differs from the tokenizer's"), ""};
}

}  // namespace

Failure check_processing(const Bundle& bundle, const std::string& place, const ProcessingEntry& entry,
                         std::ostream& out) {
  if (entry.graph.empty()) return std::nullopt;
  if (const auto reason = lacking(entry); !reason.empty()) {
    out << place << " skipped: " << reason << "\n";
    return std::nullopt;
  }
  const auto graph = open_processing(bundle, entry);
  if (!graph) return Error{place + ": " + graph.error().message, graph.error().hint};
  const auto samples = read_samples(bundle, place + "_data_set_");
  if (!samples) return samples.error();
  if (samples->empty()) return Error{place + ": the bundle holds no samples to check it on", ""};
  std::size_t differ = 0;
  std::string first;
  for (std::size_t i = 0; i < samples->size(); ++i) {
    const auto answers = (*graph)->run((*samples)[i].inputs);
    if (!answers) return Error{place + ": sample " + std::to_string(i) + ": " + answers.error().message, ""};
    const auto name = differing(entry, (*samples)[i], *answers);
    if (name.empty()) continue;
    if (differ++ == 0) first = "'" + name + "' of sample " + std::to_string(i);
  }
  return tell(place, entry, samples->size(), differ, first, out);
}

}  // namespace toolkit
