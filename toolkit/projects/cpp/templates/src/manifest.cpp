#include "manifest.hpp"

#include <algorithm>
#include <filesystem>

#include "files.hpp"
#include "json.hpp"

namespace toolkit {

namespace {

constexpr std::int64_t kSchema = 1;

Error broken(const std::string& what) {
  return Error{"manifest.json: " + what, "Copy the bundle again from where it was exported."};
}

std::vector<std::string> texts(const Json& list) {
  std::vector<std::string> found;
  for (const auto& item : list.array()) found.push_back(item.text());
  return found;
}

Failure read_axes(const Json& shape, TensorSpec& spec) {
  for (const auto& item : shape.array()) {
    const Axis axis{item.integer(-1), item.text()};
    if (!axis.fixed() && axis.name.empty()) return broken("'" + spec.name + "' has an axis without size or name");
    spec.axes.push_back(axis);
  }
  return std::nullopt;
}

Failure read_specs(const Json& list, std::vector<TensorSpec>& specs) {
  for (const auto& item : list.array()) {
    const auto dtype = dtype_named(item["dtype"].text());
    TensorSpec spec{item["name"].text(), dtype.value_or(DType::float32), {}};
    if (!dtype) return broken("'" + spec.name + "' is of the unknown type '" + item["dtype"].text() + "'");
    if (auto failure = read_axes(item["shape"], spec)) return failure;
    specs.push_back(std::move(spec));
  }
  return std::nullopt;
}

Failure read_processing(const Json& entry, ProcessingEntry& processing) {
  processing.graph = entry["graph"].text();
  processing.exact = entry["exact"].boolean();
  processing.bound = entry["bound"].number();
  processing.reason = entry["reason"].text();
  processing.needs = texts(entry["needs"]);
  if (auto failure = read_specs(entry["inputs"], processing.inputs)) return failure;
  return read_specs(entry["outputs"], processing.outputs);
}

void read_model(const Json& model, Manifest& manifest) {
  manifest.name = model["name"].text();
  manifest.kind = model["kind"].text();
  manifest.task = model["task"].text();
  manifest.labels = texts(model["labels"]);
  const auto& decoder = model["decoder"];
  if (!decoder.is_object()) return;
  DecoderEntry entry{decoder["layers"].integer(), decoder["vocabulary"].integer(), decoder["context"].integer(), {},
                     decoder["last_logits"].boolean()};
  for (const auto& token : decoder["eos"].array()) entry.eos.push_back(token.integer());
  manifest.decoder = std::move(entry);
}

Failure read_engine(const Json& engine, Manifest& manifest) {
  manifest.builder = engine["builder"].text();
  manifest.engine_reason = engine["reason"].text();
  manifest.engine_files = texts(engine["files"]);
  for (const auto& name : manifest.engine_files) {
    const std::filesystem::path file(name);
    const auto stem = file.stem().string();
    if (file.extension() == ".plan" && stem.rfind("engine-", 0) == 0) manifest.engines[stem.substr(7)] = name;
  }
  if (auto failure = read_specs(engine["inputs"], manifest.engine_inputs)) return failure;
  return read_specs(engine["outputs"], manifest.engine_outputs);
}

Gate read_gate(const Json& gate) {
  const auto bound = [&](std::string_view name) {
    const auto& value = gate[name];
    return value.is_number() ? std::optional<double>(value.number()) : std::nullopt;
  };
  return Gate{bound("min_sqnr_db"), bound("min_cosine"), bound("max_relative_l2"), bound("max_abs")};
}

Failure read_files(const Json& files, Manifest& manifest) {
  for (const auto& file : files.object()) {
    if (!is_inner_path(file.name)) return broken("'" + file.name + "' is not a relative path inside the bundle");
    const auto bytes = file.value["bytes"].integer(-1);
    if (bytes < 0) return broken("'" + file.name + "' has no size");
    manifest.files.push_back({file.name, file.value["sha256"].text(), static_cast<std::uint64_t>(bytes)});
  }
  return std::nullopt;
}

Failure check_listed(const std::string& path, const Manifest& manifest) {
  for (const auto& file : manifest.files) {
    if (file.path == path) return std::nullopt;
  }
  return broken("'" + path + "' is not listed in files");
}

/// What is opened must be among the files whose hashes are checked.
Failure check_paths(const Manifest& manifest) {
  if (auto failure = check_listed(manifest.graph, manifest)) return failure;
  if (const auto file = manifest.ort_file(); !file.empty()) {
    if (auto failure = check_listed(file, manifest)) return failure;
  }
  for (const auto& [architecture, file] : manifest.engines) {
    if (auto failure = check_listed(file, manifest)) return failure;
  }
  for (const auto* entry : {&manifest.preprocess, &manifest.postprocess}) {
    if (entry->graph.empty()) continue;
    if (auto failure = check_listed(entry->graph, manifest)) return failure;
  }
  return std::nullopt;
}

Failure check_schema(const Json& root) {
  if (!root.is_object()) return broken("not an object");
  const auto& version = root["schema_version"];
  if (!version.is_number()) return broken("has no schema version");
  if (version.integer() == kSchema) return std::nullopt;
  return Error{"manifest.json: schema version " + std::to_string(version.integer()) + "; this program reads 1",
               "Write the program again with the toolkit that wrote the bundle."};
}

Failure read_tensors(const Json& root, Manifest& manifest) {
  for (const auto& dim : root["dims"].object()) {
    manifest.dims[dim.name] = {dim.value["min"].integer(), dim.value["max"].integer()};
  }
  if (auto failure = read_specs(root["inputs"], manifest.inputs)) return failure;
  if (auto failure = read_specs(root["outputs"], manifest.outputs)) return failure;
  if (manifest.outputs.empty()) return broken("the model has no outputs");
  if (auto failure = read_engine(root["engine"], manifest)) return failure;
  if (auto failure = read_processing(root["preprocess"], manifest.preprocess)) return failure;
  return read_processing(root["postprocess"], manifest.postprocess);
}

}  // namespace

std::string Manifest::ort_file() const {
  const std::string ending = ".ort";
  for (const auto& name : engine_files) {
    if (name.size() > ending.size() && name.compare(name.size() - ending.size(), ending.size(), ending) == 0) return name;
  }
  return std::find(engine_files.begin(), engine_files.end(), graph) != engine_files.end() ? graph : "";
}

Result<Manifest> read_manifest(std::string_view text) {
  const auto root = parse_json(text);
  if (!root) return broken("not readable JSON: " + root.error().message);
  if (auto failure = check_schema(*root)) return *failure;
  Manifest manifest;
  manifest.made_by = (*root)["toolkit"].text();
  manifest.runtime = (*root)["target"]["runtime"].text();
  manifest.scheme = (*root)["target"]["scheme"].text();
  manifest.graph = (*root)["graph"].text();
  if (!(*root)["gates"]["check"].is_object()) return broken("gates must hold 'check'");
  manifest.gate = read_gate((*root)["gates"]["check"]);
  read_model((*root)["model"], manifest);
  if (auto failure = read_tensors(*root, manifest)) return *failure;
  if (auto failure = read_files((*root)["files"], manifest)) return *failure;
  if (auto failure = check_paths(manifest)) return *failure;
  return manifest;
}

}  // namespace toolkit
