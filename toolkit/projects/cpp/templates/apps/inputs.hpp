// A model's inputs from what was typed: texts, or names of picture files.
#pragma once

#include <string>
#include <vector>

#include "image.hpp"
#include "pipeline.hpp"

/// Run the model on texts in one batch, or on pictures one by one; answers the outputs of each run.
inline toolkit::Result<std::vector<toolkit::Tensors>> run_on(toolkit::Pipeline& pipeline,
                                                             const std::vector<std::string>& given) {
  std::vector<toolkit::Tensors> outputs;
  const auto run = [&](const toolkit::Result<toolkit::Tensors>& inputs) -> toolkit::Failure {
    if (!inputs) return inputs.error();
    auto answers = pipeline.run(*inputs);
    if (!answers) return answers.error();
    outputs.push_back(std::move(*answers));
    return std::nullopt;
  };
  if (pipeline.manifest().kind != "vision") {
    if (auto failure = run(pipeline.from_texts(given))) return *failure;
    return outputs;
  }
  for (const auto& path : given) {
    const auto pixels = toolkit::read_image(path);
    if (!pixels) return pixels.error();
    if (auto failure = run(pipeline.from_image(*pixels))) return *failure;
  }
  return outputs;
}
