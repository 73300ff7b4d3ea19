#include "tensor_proto.hpp"

#include <string>

#include "check.hpp"
#include "noise.hpp"

using toolkit::DType;
using toolkit::read_tensor_proto;

namespace {

std::string field(int number, int wire) { return std::string(1, static_cast<char>(number << 3 | wire)); }

std::string delimited(int number, const std::string& bytes) {
  return field(number, 2) + static_cast<char>(bytes.size()) + bytes;
}

std::string header(int type, const std::string& dims) {
  return delimited(1, dims) + field(2, 0) + static_cast<char>(type) + delimited(8, "x");
}

void test_raw_data() {
  const auto read = read_tensor_proto(header(1, {2}) + delimited(9, std::string("\0\0\x80\x3f\0\0\0\xc0", 8)));
  CHECK(read && read->name == "x" && read->tensor.shape == toolkit::Shape{2});
  const auto* values = read->tensor.as<float>();
  CHECK(values && values[0] == 1.0f && values[1] == -2.0f);
  CHECK(read->tensor.as<std::int64_t>() == nullptr);
}

void test_fields_by_type() {
  const auto floats = read_tensor_proto(header(1, {1}) + field(4, 5) + std::string("\0\0\x80\x3f", 4));
  CHECK(floats && floats->tensor.as<float>()[0] == 1.0f);
  const std::string minus_one(std::string(9, '\xff') + '\x01');
  const auto longs = read_tensor_proto(header(7, {2}) + delimited(7, minus_one + '\x05'));
  CHECK(longs && longs->tensor.as<std::int64_t>()[0] == -1 && longs->tensor.as<std::int64_t>()[1] == 5);
  const auto bytes = read_tensor_proto(header(3, {2}) + field(5, 0) + minus_one + field(5, 0) + '\x07');
  CHECK(bytes && toolkit::as_floats(bytes->tensor) == (std::vector<float>{-1, 7}));
  const auto halves = read_tensor_proto(header(10, {1}) + field(5, 0) + "\x80\x78");
  CHECK(halves && toolkit::as_floats(halves->tensor)[0] == 1.0f);
  const auto texts = read_tensor_proto(header(8, {2}) + delimited(6, "one") + delimited(6, ""));
  CHECK(texts && texts->tensor.texts == (std::vector<std::string>{"one", ""}));
  const auto empty = read_tensor_proto(header(1, std::string("\x01\0", 2)));
  CHECK(empty && empty->tensor.count() == 0);
}

void test_refusals() {
  const std::string raw(8, '\0');
  CHECK(!read_tensor_proto(header(1, {3}) + delimited(9, raw)));
  CHECK(!read_tensor_proto(header(99, {2}) + delimited(9, raw)));
  CHECK(!read_tensor_proto(header(1, {2}) + delimited(9, raw) + field(14, 0) + '\x01'));
  CHECK(!read_tensor_proto(header(1, std::string(9, '\xff') + '\x01') + delimited(9, raw)));
  std::string huge;
  for (int i = 0; i < 8; ++i) huge += "\xff\xff\xff\x7f";
  CHECK(!read_tensor_proto(header(1, huge)));
  CHECK(!read_tensor_proto("\x0b"));
}

void test_noise() {
  const auto whole = header(1, {2}) + delimited(9, std::string(8, 'x'));
  for (std::size_t size = 1; size < whole.size(); ++size) CHECK(!read_tensor_proto(whole.substr(0, size)));
  each_mutation(whole, [](const std::string& mutated) { (void)read_tensor_proto(mutated); });
}

}  // namespace

int main() {
  test_raw_data();
  test_fields_by_type();
  test_refusals();
  test_noise();
  return done();
}
