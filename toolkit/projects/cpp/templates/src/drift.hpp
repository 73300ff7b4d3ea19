// How far answers are from a reference: the measures and the gate of docs/selftest.md.
#pragma once

#include <string>
#include <vector>

#include "bundle.hpp"
#include "manifest.hpp"
#include "tensor.hpp"

namespace toolkit {

/// The four measures of an output, at its worst over all sets; `failure` where it could not be compared.
struct Drift {
  std::string output;
  double sqnr_db = 0, cosine = 0, relative_l2 = 0, max_abs = 0;
  std::string failure;
};

/// Compare tensors of real numbers element by element, in float64. `failure` is half a sentence, as `is missing`.
Drift compare(const Tensor& reference, const Tensor* answer);

/// The worst of both in each measure.
Drift worse(const Drift& one, const Drift& other);

/// Why an output does not pass, a whole sentence; empty where it does.
std::string judge(const Drift& drift, const Gate& gate);

/// `SQNR 22.3 dB, cosine 0.997044, relative L2 7.7e-02, max abs 1.9e-02`
std::string described(const Drift& drift);

}  // namespace toolkit
