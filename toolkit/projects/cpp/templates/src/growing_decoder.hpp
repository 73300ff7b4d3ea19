// A decoder over any engine whose cache goes out and comes back in, longer by what was new.
#pragma once

#include <memory>

#include "decoder.hpp"
#include "manifest.hpp"
#include "tensor.hpp"

namespace toolkit {

class Engine;

/// Copies the cache at every token: right everywhere, and slower than a cache in place.
class GrowingDecoder final : public Decoder {
 public:
  static Result<std::unique_ptr<Decoder>> make(Engine& engine, const DecoderEntry& entry, std::int64_t limit);

  Result<std::vector<float>> forward(const std::vector<std::int64_t>& tokens) override;
  std::int64_t length() const override { return length_; }
  std::int64_t limit() const override { return limit_; }

 private:
  GrowingDecoder(Engine& engine, Tensors past, std::int64_t limit)
      : engine_(engine), past_(std::move(past)), limit_(limit) {}

  Engine& engine_;
  Tensors past_;
  std::int64_t length_ = 0;
  std::int64_t limit_;
};

}  // namespace toolkit
