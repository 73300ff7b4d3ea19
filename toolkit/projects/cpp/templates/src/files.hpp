// Reading files, with errors as values.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "result.hpp"

namespace toolkit {

/// The whole file. The error is half a sentence, as `missing`.
Result<std::string> read_file(const std::filesystem::path& path);

/// Why a file is not the one with that size and SHA-256, as `missing` or `changed, …`; empty where it is.
std::string difference(const std::filesystem::path& path, std::uint64_t bytes, const std::string& sha256);

/// Whether the text is a relative POSIX path without `.`, `..` or empty parts.
bool is_inner_path(const std::string& text);

/// Whether the path, all links followed, lies in the folder.
bool lies_inside(const std::filesystem::path& path, const std::filesystem::path& folder);

}  // namespace toolkit
