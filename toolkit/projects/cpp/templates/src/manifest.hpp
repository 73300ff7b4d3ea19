// What a bundle's manifest.json says, as far as a program needs it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "result.hpp"
#include "tensor.hpp"

namespace toolkit {

/// The smallest and the largest size of a named axis.
struct Range {
  std::int64_t least = 0;
  std::int64_t most = 0;
};

struct FileEntry {
  std::string path;
  std::string sha256;
  std::uint64_t bytes = 0;
};

/// What generation needs to know of a language model.
struct DecoderEntry {
  std::int64_t layers = 0;
  std::int64_t vocabulary = 0;
  std::int64_t context = 0;
  std::vector<std::int64_t> eos;
  bool last_logits = false;
};

/// The graph before or after the model; `graph` is empty where there is none, and `reason` says why.
struct ProcessingEntry {
  std::string graph;
  std::vector<TensorSpec> inputs, outputs;
  bool exact = false;
  double bound = 0;
  std::string reason;
  std::vector<std::string> needs;
};

/// The most drift that passes; a bound that is absent is not checked.
struct Gate {
  std::optional<double> min_sqnr_db, min_cosine, max_relative_l2, max_abs;
};

struct Manifest {
  std::string made_by;
  std::string name, kind, task;
  std::vector<std::string> labels;
  std::optional<DecoderEntry> decoder;
  std::string runtime, scheme;
  std::map<std::string, Range> dims;
  std::vector<TensorSpec> inputs, outputs;
  std::string graph;
  std::string builder;
  std::string engine_reason;
  std::vector<std::string> engine_files;
  std::vector<TensorSpec> engine_inputs, engine_outputs;
  std::map<std::string, std::string> engines;  // a GPU's architecture, as sm89 -> file
  Gate gate;
  ProcessingEntry preprocess, postprocess;
  std::vector<FileEntry> files;

  /// As `ort-cpu-int8`.
  std::string target() const { return runtime + "-" + scheme; }

  /// What ONNX Runtime opens: the engine's .ort file, else the graph where that is the engine; empty where neither is.
  std::string ort_file() const;
};

/// Read the text of manifest.json. The error is a whole sentence that begins with the file's name.
Result<Manifest> read_manifest(std::string_view text);

}  // namespace toolkit
