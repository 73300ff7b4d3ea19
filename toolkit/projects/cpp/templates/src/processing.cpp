#include "processing.hpp"

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "ort_engine.hpp"

namespace toolkit {

namespace {

constexpr const char* kExtensions = "onnxruntime-extensions";

#ifdef TOOLKIT_EXTENSIONS_LIBRARY
constexpr const char* kBuiltWith = TOOLKIT_EXTENSIONS_LIBRARY;
#else
constexpr const char* kBuiltWith = "";
#endif

}  // namespace

std::string extensions_library() {
  const char* named = std::getenv("TOOLKIT_EXTENSIONS");
  if (named != nullptr && *named != '\0') return named;
  std::error_code code;
  return std::filesystem::exists(kBuiltWith, code) ? kBuiltWith : "";
}

std::string lacking(const ProcessingEntry& entry) {
  if (entry.graph.empty()) return "there is none: " + entry.reason;
  for (const auto& library : entry.needs) {
    if (library != kExtensions) return "needs " + library + ", which this program does not have";
    if (extensions_library().empty()) return "needs onnxruntime-extensions: set TOOLKIT_EXTENSIONS to its library";
  }
  return "";
}

Result<std::unique_ptr<Engine>> open_processing(const Bundle& bundle, const ProcessingEntry& entry) {
  if (const auto reason = lacking(entry); !reason.empty()) {
    return Error{"no graph for this: " + reason, "Feed the model its own inputs, or get the library."};
  }
  return open_ort_graph(bundle.path(entry.graph), entry.needs.empty() ? "" : extensions_library());
}

}  // namespace toolkit
