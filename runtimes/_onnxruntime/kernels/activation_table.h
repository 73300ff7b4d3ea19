// Gated activations as a table of short polynomials.
//
// Each is x * p(x) with p(x) + p(-x) = 1, so it equals max(x, 0) - h(|x|) with h(t) = t * p(-t), which is smooth and
// soon nothing. h is cut into 32 pieces of one width; a vector looks the five coefficients of its pieces up in registers.

#pragma once

#include <algorithm>
#include <cmath>

namespace toolkit {

enum Activation { kNone = 0, kRelu, kGelu, kGeluTanh, kQuickGelu, kActivations };

struct ActivationTable {
  static constexpr int kPieces = 32, kTerms = 5;
  float per_unit = 0.0f;  // pieces a unit of |x|; piece i is centred at i / per_unit
  alignas(64) float terms[kTerms][kPieces] = {};

  // h(t) by Horner in the distance from the centre of the piece, in widths of a piece.
  float complement(float t) const {
    const float last = static_cast<float>(kPieces - 1), wanted = t * per_unit;
    const float place = wanted < last ? wanted : last;  // NaN too belongs to the last piece
    const float piece = std::nearbyintf(place), u = place - piece;
    const int i = static_cast<int>(piece);
    float h = terms[kTerms - 1][i];
    for (int d = kTerms - 2; d >= 0; --d) h = h * u + terms[d][i];
    return h;
  }
  float operator()(float x) const { return std::max(x, 0.0f) - complement(std::fabs(x)); }
};

inline double complement_of(Activation activation, double t) {
  if (activation == kGelu) return 0.5 * t * std::erfc(t * 0.70710678118654752440);
  const double bent = 2.0 * 0.79788456080286535588 * (t + 0.044715 * t * t * t);
  return t / (1.0 + std::exp(activation == kGeluTanh ? bent : 1.702 * t));
}

// Newton's interpolation of h at the Chebyshev nodes of every piece; beyond `last` h is below 1e-7.
inline ActivationTable table_of(Activation activation) {
  constexpr int n = ActivationTable::kTerms;
  constexpr double pi = 3.14159265358979323846;
  const double last = activation == kQuickGelu ? 11.0 : 5.6;
  ActivationTable table;
  table.per_unit = static_cast<float>((ActivationTable::kPieces - 1) / last);
  for (int i = 0; i < ActivationTable::kPieces; ++i) {
    double node[n], divided[n], terms[n] = {};
    for (int j = 0; j < n; ++j) {
      node[j] = 0.5 * std::cos(pi * (2 * j + 1) / (2 * n));
      divided[j] = complement_of(activation, (i + node[j]) / table.per_unit);
    }
    for (int order = 1; order < n; ++order)
      for (int j = n - 1; j >= order; --j) divided[j] = (divided[j] - divided[j - 1]) / (node[j] - node[j - order]);
    for (int j = n - 1; j >= 0; --j) {
      for (int d = n - 1; d > 0; --d) terms[d] = terms[d - 1] - node[j] * terms[d];
      terms[0] = divided[j] - node[j] * terms[0];
    }
    for (int d = 0; d < n; ++d) table.terms[d][i] = static_cast<float>(terms[d]);
  }
  return table;
}

}  // namespace toolkit
