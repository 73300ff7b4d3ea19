#include "drift.hpp"

#include <cmath>
#include <limits>

#include "check.hpp"
#include "padding.hpp"

namespace {

using toolkit::compare;
using toolkit::DType;
using toolkit::Tensor;

Tensor row(const std::vector<float>& values) { return Tensor::of({1, static_cast<std::int64_t>(values.size())}, values); }

void test_measures() {
  const auto reference = row({3, 4}), answer = row({3, 4.5});
  const auto drift = compare(reference, &answer);
  CHECK(std::abs(drift.sqnr_db - 20) < 1e-9);
  CHECK(std::abs(drift.cosine - 27 / (5 * std::sqrt(29.25))) < 1e-12);
  CHECK(std::abs(drift.relative_l2 - 0.1) < 1e-12);
  CHECK(drift.max_abs == 0.5);
  const auto same = compare(reference, &reference);
  CHECK(std::isinf(same.sqnr_db) && same.cosine == 1 && same.relative_l2 == 0);
  const auto zero = row({0, 0});
  const auto lost = compare(zero, &answer);
  CHECK(lost.sqnr_db < 0 && std::isinf(lost.sqnr_db) && lost.cosine == 0 && std::isinf(lost.relative_l2));
}

void test_what_cannot_be_compared() {
  const auto reference = row({1, 2}), odd = row({1, std::numeric_limits<float>::quiet_NaN()}), longer = row({1, 2, 3});
  CHECK(compare(reference, nullptr).failure == "is missing");
  CHECK(compare(reference, &odd).failure == "has 1 values that are NaN, infinite or above 1e100");
  CHECK(!compare(odd, &reference).failure.empty());
  CHECK(compare(reference, &longer).failure == "has shape [1, 3], the reference has [1, 2]");
}

void test_gate() {
  const auto reference = row({3, 4}), answer = row({3, 4.5});
  auto drift = compare(reference, &answer);
  drift.output = "y";
  CHECK(toolkit::judge(drift, {19.0, 0.9, 0.2, 1.0}).empty());
  CHECK(toolkit::judge(drift, {}).empty());
  CHECK(toolkit::judge(drift, {40.0, {}, {}, {}}) ==
        "output 'y' drifted: SQNR 20.0 dB, the gate asks for at least 40.0 dB");
  CHECK(!toolkit::judge(drift, {{}, 0.9999, {}, {}}).empty());
  CHECK(!toolkit::judge(drift, {{}, {}, 0.05, {}}).empty());
  CHECK(!toolkit::judge(drift, {{}, {}, {}, 0.1}).empty());
}

/// Logits of two tokens behind one of the past: of the mask [1, 3], the last two columns are theirs.
void test_padding() {
  toolkit::Manifest manifest;
  manifest.inputs = {{"input_ids", DType::int64, {{-1, "batch"}, {-1, "sequence"}}},
                     {"attention_mask", DType::int64, {{-1, "batch"}, {-1, "total"}}}};
  const toolkit::TensorSpec spec{"logits", DType::float32, {{-1, "batch"}, {-1, "sequence"}, {2, ""}}};
  const toolkit::Tensors inputs{{"attention_mask", Tensor::of<std::int64_t>({1, 3}, {1, 1, 0})}};
  auto logits = Tensor::of<float>({1, 2, 2}, {1, 2, 3, std::numeric_limits<float>::infinity()});
  toolkit::clear_padding(logits, spec, inputs, manifest);
  const auto values = toolkit::as_floats(logits);
  CHECK(values[0] == 1 && values[1] == 2 && values[2] == 0 && std::isinf(values[3]));
}

}  // namespace

int main() {
  test_measures();
  test_what_cannot_be_compared();
  test_gate();
  test_padding();
  return done();
}
