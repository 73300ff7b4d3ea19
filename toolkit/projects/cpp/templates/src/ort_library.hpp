// The ONNX Runtime library that was found when the program started.
#pragma once

#include <string>

#include "result.hpp"

namespace toolkit {

/// Set the C++ API up, once, with the newest version that both headers and library know; answers the library's version.
/// A header's own version on an older library would be answered by a null pointer, and crash.
Result<std::string> ort_library();

}  // namespace toolkit
