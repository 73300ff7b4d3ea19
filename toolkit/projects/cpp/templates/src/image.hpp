// Pictures without a library: binary PPM and PGM (Netpbm), and uncompressed BMP.
#pragma once

#include <filesystem>
#include <string_view>

#include "result.hpp"
#include "tensor.hpp"

namespace toolkit {

/// Pixels, uint8 [height, width, channels]: 3 channels in the order red, green, blue, or 1 of a grey picture.
Result<Tensor> parse_image(std::string_view bytes);

Result<Tensor> read_image(const std::filesystem::path& path);

}  // namespace toolkit
