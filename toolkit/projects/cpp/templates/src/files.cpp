#include "files.hpp"

#include <algorithm>
#include <fstream>
#include <system_error>
#include <vector>

#include "sha256.hpp"

namespace toolkit {

namespace fs = std::filesystem;

Result<std::string> read_file(const fs::path& path) {
  std::error_code code;
  if (!fs::exists(path, code)) return Error{"missing", ""};
  std::ifstream file(path, std::ios::binary);
  std::string content;
  std::vector<char> part(1 << 16);
  while (file.read(part.data(), static_cast<std::streamsize>(part.size())) || file.gcount() > 0) {
    content.append(part.data(), static_cast<std::size_t>(file.gcount()));
  }
  if (!file.eof()) return Error{"not readable", ""};
  return content;
}

std::string difference(const fs::path& path, std::uint64_t bytes, const std::string& sha256) {
  std::error_code code;
  if (!fs::exists(path, code)) return "missing";
  if (!fs::is_regular_file(path, code)) return "not a regular file";
  const auto size = fs::file_size(path, code);
  if (code) return "not readable";
  if (size != bytes) {
    return "changed, " + std::to_string(size) + " bytes where the manifest has " + std::to_string(bytes);
  }
  std::ifstream file(path, std::ios::binary);
  std::vector<char> part(1 << 20);
  Sha256 hash;
  while (file.read(part.data(), static_cast<std::streamsize>(part.size())) || file.gcount() > 0) {
    hash.update(part.data(), static_cast<std::size_t>(file.gcount()));
  }
  if (!file.eof()) return "not readable";
  return hash.hex() == sha256 ? "" : "changed, another SHA-256 than the manifest's";
}

bool is_inner_path(const std::string& text) {
  if (text.find_first_of(std::string("\\\0", 2)) != std::string::npos) return false;
  if (text.substr(0, text.find('/')).find(':') != std::string::npos) return false;
  std::size_t start = 0;
  while (true) {
    const auto end = std::min(text.find('/', start), text.size());
    const auto part = text.substr(start, end - start);
    if (part.empty() || part == "." || part == "..") return false;
    if (end == text.size()) return true;
    start = end + 1;
  }
}

bool lies_inside(const fs::path& path, const fs::path& folder) {
  std::error_code code;
  const auto real = fs::weakly_canonical(path, code);
  if (code) return false;
  const auto root = fs::weakly_canonical(folder, code);
  if (code) return false;
  return std::mismatch(root.begin(), root.end(), real.begin(), real.end()).first == root.end();
}

}  // namespace toolkit
