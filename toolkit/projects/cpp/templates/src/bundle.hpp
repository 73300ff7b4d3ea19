// A bundle on disk: its manifest, its files, and the samples that it is checked on.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "manifest.hpp"
#include "result.hpp"
#include "tensor.hpp"

namespace toolkit {

struct Bundle {
  std::filesystem::path folder;
  Manifest manifest;

  std::filesystem::path path(const std::string& relative) const { return folder / relative; }
};

/// Inputs, and what is expected of them.
struct Sample {
  Tensors inputs;
  Tensors outputs;
};

/// Read the manifest. No other file is opened, so nothing is verified but that all paths stay inside.
Result<Bundle> open_bundle(const std::filesystem::path& folder);

/// The first file that is not the one that was written, as `model.onnx: changed, …`.
[[nodiscard]] Failure verify_files(const Bundle& bundle);

/// The samples in the folders `<prefix>N`, by number: `input_I.pb` and `output_I.pb` of each.
Result<std::vector<Sample>> read_samples(const Bundle& bundle, const std::string& prefix);

}  // namespace toolkit
