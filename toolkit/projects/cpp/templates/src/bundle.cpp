#include "bundle.hpp"

#include <system_error>

#include "files.hpp"
#include "tensor_proto.hpp"

namespace toolkit {

namespace fs = std::filesystem;

namespace {

constexpr const char* kManifest = "manifest.json";

Failure read_into(const Bundle& bundle, const std::string& relative, Tensors& tensors) {
  if (!lies_inside(bundle.path(relative), bundle.folder)) return Error{relative + ": leads out of the bundle", ""};
  const auto content = read_file(bundle.path(relative));
  if (!content) return Error{relative + ": " + content.error().message, ""};
  auto named = read_tensor_proto(*content);
  if (!named) return Error{relative + ": " + named.error().message, "Copy the bundle again."};
  tensors[named->name] = std::move(named->tensor);
  return std::nullopt;
}

/// The files `<start>I.pb` from 0 on, up to the first that is not there.
Failure read_numbered(const Bundle& bundle, const std::string& start, Tensors& tensors) {
  std::error_code code;
  for (int i = 0; fs::exists(bundle.path(start + std::to_string(i) + ".pb"), code); ++i) {
    if (auto failure = read_into(bundle, start + std::to_string(i) + ".pb", tensors)) return failure;
  }
  return std::nullopt;
}

}  // namespace

Result<Bundle> open_bundle(const fs::path& folder) {
  const auto text = read_file(folder / kManifest);
  if (!text) {
    return Error{std::string(kManifest) + ": " + text.error().message, "Give the folder that toolkit export wrote."};
  }
  auto manifest = read_manifest(*text);
  if (!manifest) return manifest.error();
  for (const auto& file : manifest->files) {
    if (!lies_inside(folder / file.path, folder)) {
      return Error{file.path + ": leads out of the bundle", "Do not use this bundle; it may be forged."};
    }
  }
  return Bundle{folder, std::move(*manifest)};
}

Failure verify_files(const Bundle& bundle) {
  for (const auto& file : bundle.manifest.files) {
    const auto reason = difference(bundle.path(file.path), file.bytes, file.sha256);
    if (!reason.empty()) return Error{file.path + ": " + reason, "Copy the bundle again from where it was exported."};
  }
  return std::nullopt;
}

Result<std::vector<Sample>> read_samples(const Bundle& bundle, const std::string& prefix) {
  std::vector<Sample> samples;
  std::error_code code;
  for (int i = 0; fs::is_directory(bundle.path(prefix + std::to_string(i)), code); ++i) {
    const auto place = prefix + std::to_string(i) + "/";
    Sample sample;
    if (auto failure = read_numbered(bundle, place + "input_", sample.inputs)) return *failure;
    if (auto failure = read_numbered(bundle, place + "output_", sample.outputs)) return *failure;
    samples.push_back(std::move(sample));
  }
  return samples;
}

}  // namespace toolkit
