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
  const auto& runtime = bundle.manifest.runtime;
  if (runtime.rfind("ort-", 0) == 0) return open_ort_engine(bundle);
#ifdef TOOLKIT_TENSORRT
  if (runtime == "trt" || runtime == "trt-rtx") return open_trt_engine(bundle);
#endif
  return Error{"this program was built without a library that runs " + bundle.manifest.target(),
               "It runs ort-… targets; for trt-… configure it with -DTOOLKIT_TENSORRT=ON."};
}

}  // namespace toolkit
