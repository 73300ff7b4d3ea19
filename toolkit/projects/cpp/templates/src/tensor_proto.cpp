#include "tensor_proto.hpp"

#include <optional>
#include <vector>

namespace toolkit {

namespace {

// Field numbers of TensorProto.
enum Field : std::uint64_t {
  kDims = 1,
  kDataType = 2,
  kFloatData = 4,
  kInt32Data = 5,
  kStringData = 6,
  kInt64Data = 7,
  kName = 8,
  kRawData = 9,
  kDoubleData = 10,
  kUint64Data = 11,
  kExternalData = 13,
  kDataLocation = 14,
};

enum Wire : std::uint64_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

/// Walks over protobuf's wire format; every step may find the end.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}

  bool empty() const { return rest_.empty(); }

  std::optional<std::uint64_t> varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) return std::nullopt;
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      value |= std::uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return value;
    }
    return std::nullopt;
  }

  std::optional<std::string_view> bytes(std::uint64_t size) {
    if (size > rest_.size()) return std::nullopt;
    const auto taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }

  std::optional<std::string_view> delimited() {
    const auto size = varint();
    return size ? bytes(*size) : std::nullopt;
  }

 private:
  std::string_view rest_;
};

/// What a message said, its numbers still in the form of the field that they came in.
struct Parts {
  std::string name;
  Shape dims;
  std::int64_t type = 0;
  bool external = false;
  std::optional<std::string_view> raw;
  std::string packed;  // fixed32 and fixed64 fields, end to end
  std::vector<std::uint64_t> varints;
  std::vector<std::string> texts;
};

/// A repeated field of varints, packed or one by one.
bool read_varints(Reader& reader, std::uint64_t wire, std::vector<std::uint64_t>& into) {
  if (wire == kVarint) {
    const auto value = reader.varint();
    if (value) into.push_back(*value);
    return value.has_value();
  }
  const auto packed = wire == kBytes ? reader.delimited() : std::nullopt;
  if (!packed) return false;
  Reader inner(*packed);
  while (!inner.empty()) {
    const auto value = inner.varint();
    if (!value) return false;
    into.push_back(*value);
  }
  return true;
}

/// A repeated field of floats or doubles, packed or one by one.
bool read_fixed(Reader& reader, std::uint64_t wire, std::string& into) {
  const auto found = wire == kBytes     ? reader.delimited()
                     : wire == kFixed32 ? reader.bytes(4)
                     : wire == kFixed64 ? reader.bytes(8)
                                        : std::nullopt;
  if (found) into.append(*found);
  return found.has_value();
}

bool skip(Reader& reader, std::uint64_t wire) {
  switch (wire) {
    case kVarint: return reader.varint().has_value();
    case kFixed64: return reader.bytes(8).has_value();
    case kBytes: return reader.delimited().has_value();
    case kFixed32: return reader.bytes(4).has_value();
    default: return false;
  }
}

bool read_dims(Reader& reader, std::uint64_t wire, Shape& dims) {
  std::vector<std::uint64_t> sizes;
  if (!read_varints(reader, wire, sizes)) return false;
  for (const auto size : sizes) dims.push_back(static_cast<std::int64_t>(size));
  return true;
}

bool read_number(Reader& reader, std::uint64_t wire, std::int64_t& number) {
  const auto value = wire == kVarint ? reader.varint() : std::nullopt;
  if (value) number = static_cast<std::int64_t>(*value);
  return value.has_value();
}

bool read_bytes(Reader& reader, std::uint64_t wire, std::optional<std::string_view>& bytes) {
  bytes = wire == kBytes ? reader.delimited() : std::nullopt;
  return bytes.has_value();
}

bool read_field(Reader& reader, std::uint64_t field, std::uint64_t wire, Parts& parts) {
  std::int64_t location = 0;
  std::optional<std::string_view> text;
  switch (field) {
    case kDims: return read_dims(reader, wire, parts.dims);
    case kDataType: return read_number(reader, wire, parts.type);
    case kFloatData:
    case kDoubleData: return read_fixed(reader, wire, parts.packed);
    case kInt32Data:
    case kInt64Data:
    case kUint64Data: return read_varints(reader, wire, parts.varints);
    case kRawData: return read_bytes(reader, wire, parts.raw);
    case kName:
      if (!read_bytes(reader, wire, text)) return false;
      parts.name = *text;
      return true;
    case kStringData:
      if (!read_bytes(reader, wire, text)) return false;
      parts.texts.emplace_back(*text);
      return true;
    case kDataLocation:
      if (!read_number(reader, wire, location)) return false;
      parts.external = parts.external || location != 0;
      return true;
    case kExternalData: parts.external = true; return skip(reader, wire);
    default: return skip(reader, wire);
  }
}

bool read_parts(std::string_view bytes, Parts& parts) {
  Reader reader(bytes);
  while (!reader.empty()) {
    const auto tag = reader.varint();
    if (!tag || !read_field(reader, *tag >> 3, *tag & 7, parts)) return false;
  }
  return true;
}

/// Little-endian elements of `size` bytes, each the low end of its varint: so floats of 16 bits come too.
void narrow(const std::vector<std::uint64_t>& varints, std::size_t size, std::vector<std::byte>& bytes) {
  bytes.reserve(varints.size() * size);
  for (const auto value : varints) {
    for (std::size_t i = 0; i < size; ++i) bytes.push_back(static_cast<std::byte>(value >> (8 * i)));
  }
}

void fill(const Parts& parts, Tensor& tensor) {
  const auto copy = [&](std::string_view from) {
    const auto* start = reinterpret_cast<const std::byte*>(from.data());
    tensor.bytes.assign(start, start + from.size());
  };
  if (tensor.dtype == DType::string) {
    tensor.texts = parts.texts;
  } else if (parts.raw) {
    copy(*parts.raw);
  } else if (tensor.dtype == DType::float32 || tensor.dtype == DType::float64) {
    copy(parts.packed);
  } else {
    narrow(parts.varints, size_of(tensor.dtype), tensor.bytes);
  }
}

}  // namespace

Result<NamedTensor> read_tensor_proto(std::string_view bytes) {
  Parts parts;
  if (!read_parts(bytes, parts)) return Error{"not an ONNX tensor, or cut off", ""};
  if (parts.external) return Error{"keeps its data in another file", ""};
  const auto dtype = dtype_numbered(parts.type);
  if (!dtype) return Error{"holds elements of type " + std::to_string(parts.type) + ", which this program lacks", ""};
  const auto count = count_of(parts.dims);
  if (!count) return Error{"has the impossible shape " + spelled(parts.dims), ""};
  NamedTensor named{std::move(parts.name), Tensor{*dtype, parts.dims, {}, {}}};
  fill(parts, named.tensor);
  const bool text = *dtype == DType::string;
  const auto held = text ? named.tensor.texts.size() : named.tensor.bytes.size();
  if (held != (text ? *count : *count * size_of(*dtype))) {
    return Error{"holds another number of elements than its shape " + spelled(parts.dims), ""};
  }
  return named;
}

}  // namespace toolkit
