// An engine that TensorRT 10, or TensorRT-RTX, compiled for this GPU's architecture.
#pragma once

#include <memory>

#include "engine.hpp"

namespace toolkit {

/// Load the bundle's engine for the first GPU. Refuses a machine without one, and a bundle without an engine for it.
Result<std::unique_ptr<Engine>> open_trt_engine(const Bundle& bundle);

}  // namespace toolkit
