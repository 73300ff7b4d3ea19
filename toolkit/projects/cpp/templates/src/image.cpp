#include "image.hpp"

#include <cctype>
#include <cstdint>
#include <optional>

#include "files.hpp"

namespace toolkit {

namespace {

constexpr std::int64_t kLargestSide = 1 << 15;

Error unreadable(const std::string& why) {
  return Error{why, "Give a binary PPM or PGM (P6, P5) of 8 bits, or an uncompressed BMP of 24 or 32 bits."};
}

Tensor pixels(std::int64_t height, std::int64_t width, std::int64_t channels) {
  return Tensor::zeros(DType::uint8, {height, width, channels});
}

bool is_size(std::int64_t size) { return size >= 1 && size <= kLargestSide; }

/// The next number of a Netpbm header, behind blanks and comments.
std::optional<std::int64_t> header_number(std::string_view bytes, std::size_t& at) {
  while (at < bytes.size() && (std::isspace(static_cast<unsigned char>(bytes[at])) || bytes[at] == '#')) {
    if (bytes[at] == '#') at = std::min(bytes.find('\n', at), bytes.size() - 1);
    ++at;
  }
  std::int64_t value = -1;
  for (; at < bytes.size() && std::isdigit(static_cast<unsigned char>(bytes[at])) && value <= kLargestSide; ++at) {
    value = (value < 0 ? 0 : value * 10) + (bytes[at] - '0');
  }
  return value < 0 ? std::nullopt : std::optional<std::int64_t>(value);
}

Result<Tensor> parse_netpbm(std::string_view bytes) {
  const std::int64_t channels = bytes[1] == '6' ? 3 : 1;
  std::size_t at = 2;
  const auto width = header_number(bytes, at), height = header_number(bytes, at), most = header_number(bytes, at);
  if (!width || !height || !most || !is_size(*width) || !is_size(*height)) return unreadable("a broken PPM header");
  if (*most != 255) return unreadable("a PPM of " + std::to_string(*most) + " levels instead of 255");
  auto image = pixels(*height, *width, channels);
  if (at >= bytes.size() || bytes.size() - at - 1 < image.bytes.size()) return unreadable("a PPM that is cut off");
  std::memcpy(image.bytes.data(), bytes.data() + at + 1, image.bytes.size());
  return image;
}

std::uint32_t little(std::string_view bytes, std::size_t at, int size) {
  std::uint32_t value = 0;
  for (int i = 0; i < size; ++i) {
    value |= std::uint32_t{static_cast<unsigned char>(bytes[at + static_cast<std::size_t>(i)])} << (8 * i);
  }
  return value;
}

struct BmpHeader {
  std::size_t start, step;
  std::int64_t width, height;
  bool upside_down;
};

Result<BmpHeader> bmp_header(std::string_view bytes) {
  if (bytes.size() < 54) return unreadable("a BMP that is cut off");
  const auto bits = little(bytes, 28, 2), compression = little(bytes, 30, 4);
  const std::int64_t width = static_cast<std::int32_t>(little(bytes, 18, 4));
  const std::int64_t height = static_cast<std::int32_t>(little(bytes, 22, 4));
  // Compression 3 of 32 bits says where the colours lie; all writers put them as uncompressed pictures have them.
  if ((bits != 24 && bits != 32) || !(compression == 0 || (compression == 3 && bits == 32))) {
    return unreadable("a BMP of " + std::to_string(bits) + " bits, compression " + std::to_string(compression));
  }
  const auto rows = height < 0 ? -height : height;
  if (!is_size(width) || !is_size(rows)) return unreadable("a broken BMP header");
  return BmpHeader{little(bytes, 10, 4), bits / 8, width, rows, height > 0};
}

Result<Tensor> parse_bmp(std::string_view bytes) {
  const auto header = bmp_header(bytes);
  if (!header) return header.error();
  const auto width = static_cast<std::size_t>(header->width), height = static_cast<std::size_t>(header->height);
  const auto row_size = (width * header->step + 3) / 4 * 4;  // rows end on whole words
  if (header->start > bytes.size() || (bytes.size() - header->start) / row_size < height) {
    return unreadable("a BMP that is cut off");
  }
  auto image = pixels(header->height, header->width, 3);
  auto* out = image.as<std::uint8_t>();
  for (std::size_t y = 0; y < height; ++y) {
    const auto row = header->start + (header->upside_down ? height - 1 - y : y) * row_size;
    for (std::size_t x = 0; x < width; ++x) {
      for (std::size_t c = 0; c < 3; ++c) *out++ = static_cast<std::uint8_t>(bytes[row + x * header->step + 2 - c]);
    }
  }
  return image;
}

}  // namespace

Result<Tensor> parse_image(std::string_view bytes) {
  if (bytes.size() > 2 && bytes[0] == 'P' && (bytes[1] == '5' || bytes[1] == '6')) return parse_netpbm(bytes);
  if (bytes.substr(0, 2) == "BM") return parse_bmp(bytes);
  return unreadable("not a picture that this program reads");
}

Result<Tensor> read_image(const std::filesystem::path& path) {
  const auto content = read_file(path);
  if (!content) return Error{path.string() + ": " + content.error().message, ""};
  auto image = parse_image(*content);
  if (!image) return Error{path.string() + ": " + image.error().message, image.error().hint};
  return image;
}

}  // namespace toolkit
