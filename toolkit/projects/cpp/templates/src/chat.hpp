// The ChatML layout of messages, for models that were taught on it.
#pragma once

#include <string>

#include "bundle.hpp"
#include "result.hpp"

namespace toolkit {

/// The prompt as a user's message, behind the system's unless that is empty, up to where the answer begins. Refuses
/// bundles whose chat template does not use ChatML's marks: other templates need a Jinja interpreter.
Result<std::string> as_chatml(const Bundle& bundle, const std::string& prompt, const std::string& system);

/// The tokens that end a text: the model's own, and those of its generation settings.
std::vector<std::int64_t> ending_tokens(const Bundle& bundle);

}  // namespace toolkit
