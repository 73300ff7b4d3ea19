#include "image.hpp"

#include <string>

#include "check.hpp"
#include "noise.hpp"

using toolkit::parse_image;

namespace {

const std::string kColour = std::string("P6\n# a comment\n2 1\n255\n") + "\x01\x02\x03\x04\x05\x06";

/// 2 x 2 pixels of 24 bits, rows from the bottom up and padded to 8 bytes.
std::string bitmap() {
  std::string bytes(54, '\0');
  bytes[0] = 'B', bytes[1] = 'M', bytes[10] = 54, bytes[14] = 40, bytes[18] = 2, bytes[22] = 2, bytes[26] = 1, bytes[28] = 24;
  return bytes + std::string("\x03\x02\x01\x06\x05\x04\0\0", 8) + std::string("\x09\x08\x07\x0c\x0b\x0a\0\0", 8);
}

std::vector<float> values(const toolkit::Result<toolkit::Tensor>& image) { return toolkit::as_floats(*image); }

void test_formats() {
  const auto colour = parse_image(kColour);
  CHECK(colour && colour->shape == (toolkit::Shape{1, 2, 3}) && values(colour) == (std::vector<float>{1, 2, 3, 4, 5, 6}));
  const auto grey = parse_image("P5 1 2 255\n\x07\x08");
  CHECK(grey && grey->shape == (toolkit::Shape{2, 1, 1}) && values(grey) == (std::vector<float>{7, 8}));
  const auto bmp = parse_image(bitmap());
  CHECK(bmp && values(bmp) == (std::vector<float>{7, 8, 9, 10, 11, 12, 1, 2, 3, 4, 5, 6}));
}

void test_refusals() {
  for (const char* text : {"", "P6", "P6 1", "P3 1 1 255\n1 2 3", "P6 1 1 65535\nxxxxxx", "P6 0 1 255\n", "GIF89a", "BM",
                           "P6 99999 99999 255\nx"}) {
    CHECK(!parse_image(text));
  }
  CHECK(!parse_image(kColour.substr(0, kColour.size() - 1)));
  CHECK(!parse_image(bitmap().substr(0, 69)));
}

}  // namespace

int main() {
  test_formats();
  test_refusals();
  each_mutation(kColour, [](const std::string& mutated) { (void)parse_image(mutated); });
  each_mutation(bitmap(), [](const std::string& mutated) { (void)parse_image(mutated); });
  return done();
}
