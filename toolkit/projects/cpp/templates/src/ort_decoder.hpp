// A language model on ONNX Runtime whose cache stays in place: past and present of each layer are one buffer.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <memory>
#include <vector>

#include "decoder.hpp"
#include "manifest.hpp"
#include "tensor.hpp"

namespace toolkit {

/// Whether the graph's attention writes new keys and values behind those that are there; its metadata says so.
bool keeps_cache_in_place(const Ort::Session& session);

/// Buffers for `limit` positions. The session must outlive the decoder. May throw as ONNX Runtime's API does.
Result<std::unique_ptr<Decoder>> open_ort_decoder(Ort::Session& session, const std::vector<TensorSpec>& inputs,
                                                  const std::vector<TensorSpec>& outputs, const DecoderEntry& entry,
                                                  std::int64_t limit);

}  // namespace toolkit
