#include "ort_decoder.hpp"

#include <map>
#include <optional>
#include <string>

#include "ort_values.hpp"
#include "step_feeds.hpp"

namespace toolkit {

namespace {

/// What lowering noted in the graph for whoever opens it.
std::optional<std::string> noted(const Ort::Session& session, const char* key) {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto value = session.GetModelMetadata().LookupCustomMetadataMapAllocated(key, allocator);
  return value ? std::optional<std::string>(value.get()) : std::nullopt;
}

class OrtDecoder final : public Decoder {
 public:
  OrtDecoder(Ort::Session& session, DType logits, const DecoderEntry& entry, std::int64_t limit)
      : session_(session), binding_(session), logits_dtype_(logits), entry_(entry), limit_(limit) {}

  /// One buffer [1, heads, limit, size], bound as what goes in and as what comes out.
  void add_cache(const TensorSpec& spec) {
    auto& cache = caches_[spec.name];
    cache = Tensor::zeros(spec.dtype, {1, spec.axes[1].size, limit_, spec.axes[3].size});
    binding_.BindInput(spec.name.c_str(), ort_view(cache));
    binding_.BindOutput(present_of(spec.name).c_str(), ort_view(cache));
  }

  void add_input(const std::string& name) { names_.push_back(name); }

  std::size_t caches() const { return caches_.size(); }

  Result<std::vector<float>> forward(const std::vector<std::int64_t>& tokens) override {
    if (auto failure = check_room(*this, tokens.size())) return *failure;
    return guarded("the run failed", [&]() -> Result<std::vector<float>> { return step(tokens); });
  }

  std::int64_t length() const override { return length_; }
  std::int64_t limit() const override { return limit_; }

 private:
  Result<std::vector<float>> step(const std::vector<std::int64_t>& tokens) {
    const auto feeds = step_feeds(tokens, length_);
    const auto count = static_cast<std::int64_t>(tokens.size());
    auto logits = Tensor::zeros(logits_dtype_, {1, entry_.last_logits ? 1 : count, entry_.vocabulary});
    for (const auto& name : names_) binding_.BindInput(name.c_str(), ort_view(feeds.at(name)));
    binding_.BindOutput("logits", ort_view(logits));
    session_.Run(Ort::RunOptions{nullptr}, binding_);
    length_ += count;
    return last_logits(logits);
  }

  Ort::Session& session_;
  Ort::IoBinding binding_;
  DType logits_dtype_;
  DecoderEntry entry_;
  std::int64_t limit_;
  std::int64_t length_ = 0;
  std::vector<std::string> names_;
  std::map<std::string, Tensor> caches_;
};

Failure check_limit(const Ort::Session& session, std::int64_t limit) {
  const auto positions = noted(session, "toolkit.positions");
  if (!positions || limit <= std::strtoll(positions->c_str(), nullptr, 10)) return std::nullopt;
  return Error{"a cache of " + std::to_string(limit) + " positions, and the graph was lowered for " + *positions,
               "Give --context " + *positions + " or less."};
}

}  // namespace

bool keeps_cache_in_place(const Ort::Session& session) { return noted(session, "toolkit.cache").has_value(); }

Result<std::unique_ptr<Decoder>> open_ort_decoder(Ort::Session& session, const std::vector<TensorSpec>& inputs,
                                                  const std::vector<TensorSpec>& outputs, const DecoderEntry& entry,
                                                  std::int64_t limit) {
  if (auto failure = check_limit(session, limit)) return *failure;
  auto logits = DType::float32;
  for (const auto& spec : outputs) logits = spec.name == "logits" ? spec.dtype : logits;
  auto decoder = std::make_unique<OrtDecoder>(session, logits, entry, limit);
  const auto known = step_feeds({0}, 0);
  for (const auto& spec : inputs) {
    if (is_past(spec.name) && spec.axes.size() == 4) {
      decoder->add_cache(spec);
    } else if (known.count(spec.name) > 0) {
      decoder->add_input(spec.name);
    } else {
      return Error{"input '" + spec.name + "' is none that this program can fill", ""};
    }
  }
  if (static_cast<std::int64_t>(decoder->caches()) != 2 * entry.layers) {
    return Error{"the graph has another number of cache inputs than its " + std::to_string(entry.layers) + " layers",
                 "Export the model again."};
  }
  return std::unique_ptr<Decoder>(std::move(decoder));
}

}  // namespace toolkit
