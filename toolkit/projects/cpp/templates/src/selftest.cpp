#include "selftest.hpp"

#include "bundle.hpp"
#include "drift.hpp"
#include "model.hpp"
#include "padding.hpp"
#include "selftest_processing.hpp"
#include "shapes.hpp"

namespace toolkit {

namespace {

const Tensor* find(const Tensors& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  return found == tensors.end() ? nullptr : &found->second;
}

/// The drift of one output on one set; without padding, which is cleared in both.
Drift drift_of(const TensorSpec& output, Sample& sample, Tensors& answers, const Manifest& manifest) {
  Drift drift;
  const auto* reference = find(sample.outputs, output.name);
  if (reference == nullptr) {
    drift.failure = "is missing from the reference";
  } else {
    clear_padding(sample.outputs[output.name], output, sample.inputs, manifest);
    const auto* answer = find(answers, output.name);
    if (answer != nullptr) clear_padding(answers[output.name], output, sample.inputs, manifest);
    drift = compare(*reference, answer);
  }
  drift.output = output.name;
  return drift;
}

Result<std::vector<Drift>> measure(const Manifest& manifest, std::vector<Sample>& samples, Model& model) {
  std::vector<Drift> worst;
  for (auto& sample : samples) {
    auto answers = model.run(sample.inputs);
    if (!answers) return answers.error();
    for (std::size_t i = 0; i < manifest.outputs.size(); ++i) {
      const auto drift = drift_of(manifest.outputs[i], sample, *answers, manifest);
      if (worst.size() == i) {
        worst.push_back(drift);
      } else {
        worst[i] = worse(worst[i], drift);
      }
    }
  }
  return worst;
}

Failure tell(const std::vector<Drift>& drifts, const Gate& gate, std::ostream& out) {
  Failure first;
  for (const auto& drift : drifts) {
    const auto reason = judge(drift, gate);
    out << "output " << drift.output << ": " << described(drift) << ": " << (reason.empty() ? "pass" : "FAIL") << "\n";
    if (!reason.empty() && !first) first = Error{reason, ""};
  }
  return first;
}

Failure check_golden(const Bundle& bundle, Model& model, std::ostream& out) {
  auto samples = read_samples(bundle, "test_data_set_");
  if (!samples) return samples.error();
  if (samples->empty()) return Error{"the bundle holds no golden inputs, so there is nothing to check it on", ""};
  const auto drifts = measure(bundle.manifest, *samples, model);
  if (!drifts) return drifts.error();
  return tell(*drifts, bundle.manifest.gate, out);
}

}  // namespace

Failure run_selftest(const std::filesystem::path& folder, std::ostream& out) {
  const auto bundle = open_bundle(folder);
  if (!bundle) return bundle.error();
  const auto& manifest = bundle->manifest;
  out << "bundle " << manifest.name << " " << manifest.target() << ", made by toolkit " << manifest.made_by << "\n";
  if (auto failure = verify_files(*bundle)) return failure;
  out << "files " << manifest.files.size() << " unchanged\n";
  auto model = Model::open(*bundle);
  if (!model) return model.error();
  out << "runtime " << model->ran_on() << "\n";
  if (auto failure = check_golden(*bundle, *model, out)) return failure;
  if (auto failure = check_processing(*bundle, "preprocess", manifest.preprocess, out)) return failure;
  return check_processing(*bundle, "postprocess", manifest.postprocess, out);
}

}  // namespace toolkit
