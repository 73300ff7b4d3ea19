// A graph opened with ONNX Runtime.
#pragma once

#include <filesystem>
#include <memory>

#include "engine.hpp"

namespace toolkit {

/// The bundle's graph, on the CPU or on the provider of its target (ort-cuda, ort-trt).
Result<std::unique_ptr<Engine>> open_ort_engine(const Bundle& bundle);

/// A graph before or after the model, on the CPU; with the library of operators at `extensions`, unless that is empty.
Result<std::unique_ptr<Engine>> open_ort_graph(const std::filesystem::path& path, const std::string& extensions);

}  // namespace toolkit
