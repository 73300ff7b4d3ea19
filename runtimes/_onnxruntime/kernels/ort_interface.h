// What the kernels use of ONNX Runtime's C interface.
//
// No ONNX Runtime header is needed: its C interface only ever grows, so the slots used here stand where they are.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "memory.h"

namespace toolkit {

using Status = void*;
using Api = void* const*;

enum Slot {
  kCreateStatus = 0,
  kCreateDomain = 26,
  kDomainAdd = 27,
  kAddDomain = 28,
  kTensorData = 51,
  kTensorType = 60,
  kDimensionCount = 61,
  kDimensions = 62,
  kElementCount = 64,
  kTypeAndShape = 65,
  kFloatAttribute = 85,
  kAttribute = 86,
  kInput = 90,
  kOutput = 91,
  kReleaseStatus = 93,
  kReleaseShape = 99,
  kConstantInput = 249,
  kParallelFor = 274,
};
constexpr uint32_t kInterface = 17;   // the first with kParallelFor
constexpr uint32_t kOpLayout = 16;    // OrtCustomOp as far as `last` below
constexpr int kFail = 1, kAnyType = 0, kFloat = 1, kUint8 = 2, kInt64 = 7, kBool = 9;

struct Failed {
  Status status;
};

template <class... A>
void call(Api api, Slot slot, A... arguments) {
  const Status status = reinterpret_cast<Status (*)(A...)>(api[slot])(arguments...);
  if (status != nullptr) throw Failed{status};
}

inline Status failure(Api api, const char* text) {
  return reinterpret_cast<Status (*)(int, const char*)>(api[kCreateStatus])(kFail, text);
}

// Exceptions must not pass through a C interface.
template <class F>
Status guarded(Api api, F body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const std::exception& error) {
    return failure(api, error.what());
  } catch (...) {
    return failure(api, "unknown error");
  }
}

class Shape {
 public:
  Shape(Api api, const void* tensor) : api_(api) { call(api, kTypeAndShape, tensor, &info_); }
  ~Shape() { reinterpret_cast<void (*)(void*)>(api_[kReleaseShape])(info_); }
  Shape(const Shape&) = delete;
  Shape& operator=(const Shape&) = delete;

  int type() const {
    int type = 0;
    call(api_, kTensorType, static_cast<const void*>(info_), &type);
    return type;
  }
  int64_t elements() const {
    size_t count = 0;
    call(api_, kElementCount, static_cast<const void*>(info_), &count);
    return static_cast<int64_t>(count);
  }
  std::vector<int64_t> dimensions() const {
    size_t count = 0;
    call(api_, kDimensionCount, static_cast<const void*>(info_), &count);
    std::vector<int64_t> sizes(count);
    call(api_, kDimensions, static_cast<const void*>(info_), sizes.data(), count);
    return sizes;
  }

 private:
  Api api_;
  void* info_ = nullptr;
};

inline void* data_of(Api api, const void* tensor) {
  void* data = nullptr;
  call(api, kTensorData, tensor, &data);
  return data;
}

inline int64_t attribute(Api api, const void* info, const char* name) {
  int64_t value = 0;
  call(api, kAttribute, info, name, &value);
  return value;
}

inline float float_attribute(Api api, const void* info, const char* name) {
  float value = 0.0f;
  call(api, kFloatAttribute, info, name, &value);
  return value;
}

// A constant of exactly so many elements: the packing trusts the count.
inline const void* constant(Api api, const void* info, size_t index, int type, int64_t elements, std::vector<Range>& read) {
  int is_constant = 0;
  const void* tensor = nullptr;
  call(api, kConstantInput, info, index, &is_constant, &tensor);
  if (!is_constant || tensor == nullptr)
    throw std::invalid_argument("input " + std::to_string(index) + " must be a constant");
  const Shape shape(api, tensor);
  if (shape.type() != type || shape.elements() != elements)
    throw std::invalid_argument("input " + std::to_string(index) + " must have " + std::to_string(elements) +
                                " elements, or it has the wrong type");
  const void* data = data_of(api, tensor);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  read.push_back({begin, begin + static_cast<uintptr_t>(elements) * (type == kFloat ? 4 : 1)});
  return data;
}

struct Op {
  uint32_t version;
  void* create;
  const char* (*name)(const Op*);
  const char* (*provider)(const Op*);
  int (*input_type)(const Op*, size_t);
  size_t (*inputs)(const Op*);
  int (*output_type)(const Op*, size_t);
  size_t (*outputs)(const Op*);
  void* compute;
  void (*destroy)(void*);
  int (*input_kind)(const Op*, size_t);
  int (*output_kind)(const Op*, size_t);
  int (*input_memory)(const Op*, size_t);
  int (*variadic_input_least)(const Op*);
  int (*variadic_input_alike)(const Op*);
  int (*variadic_output_least)(const Op*);
  int (*variadic_output_alike)(const Op*);
  Status (*create_v2)(const Op*, Api, const void* info, void** kernel);
  Status (*compute_v2)(void* kernel, void* context);
  Status (*infer_shape)(const Op*, void*);
  int (*since)(const Op*);
  int (*until)(const Op*);
  void* last[4];
  int64_t variant;  // ours, for operators that share code: ONNX Runtime reads no further than it knows
};
// Pieces of about this much work, so that threads that start late or run slowly take fewer of them.
inline int64_t chunks_of(int64_t work, int64_t each, int64_t most) {
  return std::clamp<int64_t>(work / each, 1, std::min<int64_t>(most, 64));
}
inline int number_one(const Op*) { return 1; }
inline int zero_of(const Op*, size_t) { return 0; }

// Where piece `index` of so many begins.
inline int64_t cut(int64_t whole, size_t index, int64_t pieces) {
  return whole * static_cast<int64_t>(index) / pieces;
}

// Runs `body(0)` to `body(pieces - 1)` on ONNX Runtime's own pool; `body` must not throw.
template <class F>
void in_pieces(Api api, void* context, int64_t pieces, const F& body) {
  if (pieces == 1) return body(size_t{0});
  void (*piece)(void*, size_t) = [](void* held, size_t index) { (*static_cast<const F*>(held))(index); };
  call(api, kParallelFor, static_cast<const void*>(context), piece, static_cast<size_t>(pieces), size_t{0},
       const_cast<void*>(static_cast<const void*>(&body)));
}

// What all our operators have in common; name, inputs and their types are to be set. One output of float, unless said.
template <class Kernel>
Op bare_op(int64_t variant, Status (*create)(const Op*, Api, const void*, void**), Status (*compute)(void*, void*)) {
  Op op{};
  op.variant = variant;
  op.output_type = [](const Op*, size_t) { return static_cast<int>(kFloat); };
  op.outputs = [](const Op*) -> size_t { return 1; };
  op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.create_v2 = create;
  op.compute_v2 = compute;
  op.version = kOpLayout;
  op.provider = [](const Op*) -> const char* { return nullptr; };
  op.input_kind = op.output_kind = op.input_memory = zero_of;
  op.variadic_input_least = op.variadic_input_alike = number_one;
  op.variadic_output_least = op.variadic_output_alike = number_one;
  op.since = op.until = number_one;
  return op;
}

}  // namespace toolkit
