#include "chat.hpp"

#include "files.hpp"
#include "json.hpp"

namespace toolkit {

namespace {

std::string asset(const Bundle& bundle, const std::string& name) {
  const auto text = read_file(bundle.path("assets/" + name));
  return text ? *text : "";
}

std::string message(const std::string& role, const std::string& content) {
  return "<|im_start|>" + role + "\n" + content + "<|im_end|>\n";
}

}  // namespace

Result<std::string> as_chatml(const Bundle& bundle, const std::string& prompt, const std::string& system) {
  const auto template_text = asset(bundle, "chat_template.jinja") + asset(bundle, "tokenizer_config.json");
  if (template_text.find("<|im_start|>") == std::string::npos) {
    return Error{"the bundle's chat template does not use ChatML", "Lay the prompt out yourself, and leave --chatml out."};
  }
  const auto before = system.empty() ? "" : message("system", system);
  return before + message("user", prompt) + "<|im_start|>assistant\n";
}

std::vector<std::int64_t> ending_tokens(const Bundle& bundle) {
  std::vector<std::int64_t> tokens;
  if (bundle.manifest.decoder) tokens = bundle.manifest.decoder->eos;
  const auto settings = parse_json(asset(bundle, "generation_config.json"));
  if (!settings) return tokens;
  const auto& eos = (*settings)["eos_token_id"];
  if (eos.is_number()) tokens.push_back(eos.integer());
  for (const auto& token : eos.array()) tokens.push_back(token.integer());
  return tokens;
}

}  // namespace toolkit
