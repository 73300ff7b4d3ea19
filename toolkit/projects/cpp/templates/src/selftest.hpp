// The self-test: replays a bundle's golden inputs here and holds the answers to what PyTorch gave.
#pragma once

#include <filesystem>
#include <ostream>

#include "result.hpp"

namespace toolkit {

/// Run all steps, telling each on `out`, up to the first that fails; answers why.
[[nodiscard]] Failure run_selftest(const std::filesystem::path& folder, std::ostream& out);

}  // namespace toolkit
