// The graphs before and after the model: from texts or pixels to its inputs, and from its outputs to answers.
#pragma once

#include <memory>
#include <string>

#include "bundle.hpp"
#include "engine.hpp"
#include "result.hpp"

namespace toolkit {

/// Where the library of tokenizer operators is: $TOOLKIT_EXTENSIONS, else where it was at build time; or empty.
std::string extensions_library();

/// Why this program cannot run the graph, as `there is none: …` or `needs onnxruntime-extensions, …`; or empty.
std::string lacking(const ProcessingEntry& entry);

/// The opened graph of an entry. Refuses one that is `lacking`.
Result<std::unique_ptr<Engine>> open_processing(const Bundle& bundle, const ProcessingEntry& entry);

}  // namespace toolkit
