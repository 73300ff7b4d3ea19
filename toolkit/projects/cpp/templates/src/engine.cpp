#include "engine.hpp"

#include "growing_decoder.hpp"
#include "ort_engine.hpp"
#ifdef TOOLKIT_TENSORRT
#include "trt_engine.hpp"
#endif

namespace toolkit {

Result<std::unique_ptr<Decoder>> Engine::decoder(const DecoderEntry& entry, std::int64_t limit) {
  return GrowingDecoder::make(*this, entry, limit);
}

Result<std::unique_ptr<Engine>> open_engine(const Bundle& bundle) {
  const auto& manifest = bundle.manifest;
#ifdef TOOLKIT_TENSORRT
  if (!manifest.engines.empty()) return open_trt_engine(bundle);
#endif
  if (!manifest.ort_file().empty()) return open_ort_engine(bundle);
  if (manifest.engines.empty()) {
    return Error{"the bundle has no engine that this program runs: " + manifest.engine_reason,
                 "It runs bundles of ort-… and trt-… targets."};
  }
  return Error{"this program was built without TensorRT, which runs " + manifest.target(),
               "Configure it with -DTOOLKIT_TENSORRT=ON; README.md tells how."};
}

}  // namespace toolkit
