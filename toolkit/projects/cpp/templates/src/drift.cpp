#include "drift.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

namespace toolkit {

namespace {

constexpr double kLargest = 1e100;  // its square still sums to a finite double
constexpr std::size_t kChunk = 1 << 14;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Sums over reference r and answer c, from which every measure follows.
struct Sums {
  double signal = 0, power = 0, product = 0, noise = 0, peak = 0;
  std::size_t odd = 0, odd_references = 0;
};

void add(Sums& sums, double reference, double answer) {
  const bool odd = !(std::abs(answer) <= kLargest), odd_reference = !(std::abs(reference) <= kLargest);
  sums.odd += odd;
  sums.odd_references += odd_reference;
  if (odd || odd_reference) return;
  const double error = reference - answer;
  sums.signal += reference * reference;
  sums.power += answer * answer;
  sums.product += reference * answer;
  sums.noise += error * error;
  sums.peak = std::max(sums.peak, std::abs(error));
}

Sums sums_of(const Tensor& reference, const Tensor& answer) {
  Sums sums;
  const auto count = reference.count();
  for (std::size_t start = 0; start < count; start += kChunk) {
    const auto part = std::min(kChunk, count - start);
    const auto left = as_doubles(reference, start, part), right = as_doubles(answer, start, part);
    for (std::size_t i = 0; i < part; ++i) add(sums, left[i], right[i]);
  }
  return sums;
}

double sqnr_of(const Sums& sums) {
  if (sums.peak == 0) return kInfinity;
  if (sums.signal == 0) return -kInfinity;
  return sums.noise == 0 ? kInfinity : 10 * (std::log10(sums.signal) - std::log10(sums.noise));
}

double cosine_of(const Sums& sums) {
  if (sums.peak == 0) return 1;
  if (sums.signal == 0 || sums.power == 0) return 0;
  return std::clamp(sums.product / (std::sqrt(sums.signal) * std::sqrt(sums.power)), -1.0, 1.0);
}

double relative_l2_of(const Sums& sums) {
  if (sums.peak == 0) return 0;
  return sums.signal == 0 ? kInfinity : std::sqrt(sums.noise) / std::sqrt(sums.signal);
}

template <typename... Values>
std::string printed(const char* layout, Values... values) {
  char text[200];
  std::snprintf(text, sizeof text, layout, values...);
  return text;
}

}  // namespace

Drift compare(const Tensor& reference, const Tensor* answer) {
  Drift drift;
  if (answer == nullptr) {
    drift.failure = "is missing";
  } else if (answer->shape != reference.shape) {
    drift.failure = "has shape " + spelled(answer->shape) + ", the reference has " + spelled(reference.shape);
  } else if (reference.dtype == DType::string || answer->dtype == DType::string) {
    drift.failure = "holds texts, which have no drift";
  } else {
    const auto sums = sums_of(reference, *answer);
    if (sums.odd_references > 0) {
      drift.failure = "has a reference with NaN, infinite values or values above 1e100";
    } else if (sums.odd > 0) {
      drift.failure = "has " + std::to_string(sums.odd) + " values that are NaN, infinite or above 1e100";
    }
    drift.sqnr_db = sqnr_of(sums);
    drift.cosine = cosine_of(sums);
    drift.relative_l2 = relative_l2_of(sums);
    drift.max_abs = sums.peak;
  }
  return drift;
}

Drift worse(const Drift& one, const Drift& other) {
  return Drift{one.output,
               std::min(one.sqnr_db, other.sqnr_db),
               std::min(one.cosine, other.cosine),
               std::max(one.relative_l2, other.relative_l2),
               std::max(one.max_abs, other.max_abs),
               one.failure.empty() ? other.failure : one.failure};
}

std::string judge(const Drift& drift, const Gate& gate) {
  const auto subject = "output '" + drift.output + "'";
  if (!drift.failure.empty()) return subject + " " + drift.failure;
  if (gate.min_sqnr_db && !(drift.sqnr_db >= *gate.min_sqnr_db)) {
    return subject + printed(" drifted: SQNR %.1f dB, the gate asks for at least %.1f dB", drift.sqnr_db, *gate.min_sqnr_db);
  }
  if (gate.min_cosine && !(drift.cosine >= *gate.min_cosine)) {
    return subject + printed(" drifted: cosine %.6f, the gate asks for at least %g", drift.cosine, *gate.min_cosine);
  }
  if (gate.max_relative_l2 && !(drift.relative_l2 <= *gate.max_relative_l2)) {
    return subject +
           printed(" drifted: relative L2 %.1e, the gate asks for at most %g", drift.relative_l2, *gate.max_relative_l2);
  }
  if (gate.max_abs && !(drift.max_abs <= *gate.max_abs)) {
    return subject + printed(" drifted: max abs %.1e, the gate asks for at most %g", drift.max_abs, *gate.max_abs);
  }
  return "";
}

std::string described(const Drift& drift) {
  if (!drift.failure.empty()) return drift.failure;
  return printed("SQNR %.1f dB, cosine %.6f, relative L2 %.1e, max abs %.1e", drift.sqnr_db, drift.cosine,
                 drift.relative_l2, drift.max_abs);
}

}  // namespace toolkit
