#include "ort_library.hpp"

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <sstream>

namespace toolkit {

namespace {

/// The first version that has all that this program calls.
constexpr unsigned kOldest = 17;

/// The API's version is the minor number of the library's: 1.32.0 has API version 32.
unsigned minor_of(const std::string& version) {
  std::istringstream stream(version);
  unsigned major = 0, minor = 0;
  char dot = 0;
  stream >> major >> dot >> minor;
  return stream.fail() ? 0 : minor;
}

Result<std::string> set_up() {
  const auto* base = OrtGetApiBase();
  const std::string version = base->GetVersionString();
  const auto usable = std::min<unsigned>(ORT_API_VERSION, minor_of(version));
  const auto* api = usable < kOldest ? nullptr : base->GetApi(usable);
  if (api == nullptr) {
    return Error{"onnxruntime " + version + " is too old; this program needs 1." + std::to_string(kOldest) +
                     " or newer",
                 "Put a newer libonnxruntime beside the program, or on the library path."};
  }
  Ort::InitApi(api);
  return version;
}

}  // namespace

Result<std::string> ort_library() {
  static const Result<std::string> found = set_up();
  return found;
}

}  // namespace toolkit
