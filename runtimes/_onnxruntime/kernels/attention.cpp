// Operators of domain `toolkit.cpu`: attention without a tensor of Sq x Skv.
//
//   Attention(query, key, value)     attributes q_num_heads, kv_num_heads, is_causal, scale, bfloat16
//   AttentionMasked(query, key, value, mask, lengths)
//   AttentionPacked(qkv)
//   AttentionPackedMasked(qkv, mask, lengths)
//
// Numbers of heads given: query [B, Sq, Hq D], key [B, Skv, Hkv D], value [B, Skv, Hkv Dv], output [B, Sq, Hq Dv]; qkv
// [B, S, (Hq + 2 Hkv) D] holds all three after each other. Both 0: heads apart, [B, H, S, D]. All float32. The mask is
// bool (true: attend) or float (added), of rank 2 to 4, and broadcasts to [B, Hq, Sq, Skv]. Hq is a multiple of Hkv.
// `lengths`, int64 [2], is what the function in the graph expands the mask to; the kernel has no use for it.
// Causal: query i sees key j <= i. A query that sees no key answers zeros. What NaN reaches becomes NaN; a key that the
// boolean mask excludes reaches nothing where it is excluded for all queries of a head.
// bfloat16 = 1: queries, keys, weights and values may be rounded to bfloat16 before they are multiplied, where the
// processor has such products; sums, scores and the softmax stay float32.
// Memory: a copy of one head's keys and values for each thread, nothing that grows with Sq x Skv.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_call.h"
#include "operators.h"

namespace toolkit {
namespace {

constexpr int64_t kMaskedVariant = 1, kPackedVariant = 2;
// Which input the mask is, where there is one.
size_t mask_at(int64_t variant) { return variant & kPackedVariant ? 1 : 3; }

using Sizes = std::vector<int64_t>;

struct Kernel {
  Api api;
  bool masked, packed, causal;
  int64_t heads, key_heads;
  float scale;
  AttentionKernel kernel;
};

struct Tensor {
  const void* data;
  Sizes sizes;
  int type;
};

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

Tensor input_of(Api api, void* context, size_t index) {
  const void* value = nullptr;
  call(api, kInput, static_cast<const void*>(context), index, &value);
  require(value != nullptr, "an input is missing");
  const Shape shape(api, value);
  return {data_of(api, value), shape.dimensions(), shape.type()};
}

// Rows whose heads stand side by side, `skipped` numbers into rows of `width`.
Heads side_by_side(const Tensor& from, int64_t size, int64_t width, int64_t skipped = 0) {
  float* data = const_cast<float*>(static_cast<const float*>(from.data));
  return {data + skipped, from.sizes[1] * width, size, width};
}

Heads apart(const void* data, int64_t heads, int64_t rows, int64_t size) {
  return {const_cast<float*>(static_cast<const float*>(data)), heads * rows * size, rows * size, size};
}

void read_packed(AttentionCall& c, const Tensor& qkv) {
  require(qkv.sizes.size() == 3, "qkv must be [B, S, (Hq + 2 Hkv) D]");
  const int64_t width = qkv.sizes[2], parts = c.heads + 2 * c.key_heads;
  require(width % parts == 0, "the width of qkv must be a multiple of the number of heads");
  c.batches = qkv.sizes[0];
  c.queries = c.keys = qkv.sizes[1];
  c.size = c.value_size = width / parts;
  c.query = side_by_side(qkv, c.size, width);
  c.key = side_by_side(qkv, c.size, width, c.heads * c.size);
  c.value = side_by_side(qkv, c.size, width, (c.heads + c.key_heads) * c.size);
}

void read_flat(AttentionCall& c, const Tensor& q, const Tensor& k, const Tensor& v) {
  require(q.sizes.size() == 3 && k.sizes.size() == 3 && v.sizes.size() == 3,
          "with numbers of heads query, key and value must be [B, S, H D]");
  require(q.sizes[0] == k.sizes[0] && k.sizes[0] == v.sizes[0] && k.sizes[1] == v.sizes[1],
          "query, key and value must have one batch, key and value one length");
  require(q.sizes[2] % c.heads == 0 && k.sizes[2] % c.key_heads == 0 && v.sizes[2] % c.key_heads == 0,
          "the width of query, key and value must be a multiple of their number of heads");
  c.batches = q.sizes[0];
  c.queries = q.sizes[1];
  c.keys = k.sizes[1];
  c.size = q.sizes[2] / c.heads;
  c.value_size = v.sizes[2] / c.key_heads;
  require(k.sizes[2] / c.key_heads == c.size, "query and key must have one head size");
  c.query = side_by_side(q, c.size, q.sizes[2]);
  c.key = side_by_side(k, c.size, k.sizes[2]);
  c.value = side_by_side(v, c.value_size, v.sizes[2]);
}

void read_apart(AttentionCall& c, const Tensor& q, const Tensor& k, const Tensor& v) {
  require(q.sizes.size() == 4 && k.sizes.size() == 4 && v.sizes.size() == 4,
          "without numbers of heads query, key and value must be [B, H, S, D]");
  require(q.sizes[0] == k.sizes[0] && k.sizes[0] == v.sizes[0] && k.sizes[1] == v.sizes[1] &&
              k.sizes[2] == v.sizes[2] && q.sizes[3] == k.sizes[3],
          "query, key and value must have one batch, key and value one length and as many heads, query and key one size");
  c.batches = q.sizes[0];
  c.heads = q.sizes[1];
  c.key_heads = k.sizes[1];
  c.queries = q.sizes[2];
  c.keys = k.sizes[2];
  c.size = q.sizes[3];
  c.value_size = v.sizes[3];
  require(c.key_heads > 0 && c.heads % c.key_heads == 0, "query heads must be a multiple of key heads");
  c.query = apart(q.data, c.heads, c.queries, c.size);
  c.key = apart(k.data, c.key_heads, c.keys, c.size);
  c.value = apart(v.data, c.key_heads, c.keys, c.value_size);
}

void read_mask(AttentionCall& c, const Tensor& mask) {
  const std::array<int64_t, 4> whole = {c.batches, c.heads, c.queries, c.keys};
  require(mask.type == kFloat || mask.type == kBool, "the mask must be bool or float32");
  require(mask.sizes.size() >= 2 && mask.sizes.size() <= 4, "the mask must have two to four dimensions");
  std::array<int64_t, 4> strides = {};
  int64_t stride = 1;
  for (size_t i = 0; i < mask.sizes.size(); ++i) {
    const int64_t size = mask.sizes[mask.sizes.size() - 1 - i];
    require(size == 1 || size == whole[3 - i], "the mask must broadcast to [B, Hq, Sq, Skv]");
    if (size != 1) strides[3 - i] = stride;
    stride *= size;
  }
  if (mask.type == kBool) c.mask.allowed = static_cast<const uint8_t*>(mask.data);
  else c.mask.added = static_cast<const float*>(mask.data);
  c.mask.batch = strides[0];
  c.mask.head = strides[1];
  c.mask.query = strides[2];
  c.mask.key = strides[3];
}

Sizes answer(const Kernel& kernel, AttentionCall& c) {
  const int64_t width = c.heads * c.value_size;
  if (kernel.heads == 0) {
    c.output = {nullptr, c.queries * width, c.queries * c.value_size, c.value_size};
    return {c.batches, c.heads, c.queries, c.value_size};
  }
  c.output = {nullptr, c.queries * width, c.value_size, width};
  return {c.batches, c.queries, width};
}

AttentionCall read(const Kernel& kernel, void* context) {
  AttentionCall c;
  c.heads = kernel.heads;
  c.key_heads = kernel.key_heads;
  c.scale = kernel.scale;
  c.causal = kernel.causal;
  const Tensor first = input_of(kernel.api, context, 0);
  if (kernel.packed) read_packed(c, first);
  else {
    const Tensor k = input_of(kernel.api, context, 1), v = input_of(kernel.api, context, 2);
    if (kernel.heads == 0) read_apart(c, first, k, v);
    else read_flat(c, first, k, v);
  }
  if (kernel.masked) read_mask(c, input_of(kernel.api, context, mask_at(kernel.packed ? kPackedVariant : 0)));
  return c;
}

// Whole heads where there are enough of them, so that each one's keys are gathered once.
int64_t pieces_of(const AttentionCall& c, int64_t blocks) {
  constexpr int64_t enough = 16, each = int64_t{1} << 19;
  const int64_t heads = c.batches * c.heads, splits = (enough + heads - 1) / heads;
  const int64_t most = heads * std::min(splits, blocks);
  const int64_t work = heads * c.queries * c.keys * (c.size + c.value_size);
  return chunks_of(work, each, most);
}

Status compute(void* opened, void* context) {
  const Kernel& kernel = *static_cast<Kernel*>(opened);
  const Api api = kernel.api;
  return guarded(api, [&] {
    AttentionCall c = read(kernel, context);
    const Sizes sizes = answer(kernel, c);
    void* output = nullptr;
    call(api, kOutput, context, size_t{0}, sizes.data(), sizes.size(), &output);
    if (c.batches * c.heads * c.queries * c.value_size == 0) return;
    c.output.data = static_cast<float*>(data_of(api, output));
    const int64_t blocks = (c.queries + kernel.kernel.most_queries - 1) / kernel.kernel.most_queries;
    const int64_t items = c.batches * c.heads * blocks, pieces = pieces_of(c, blocks);
    std::atomic<bool> failed{false};
    in_pieces(api, context, pieces, [&](size_t i) {
      try {
        kernel.kernel.attend(c, blocks, cut(items, i, pieces), cut(items, i + 1, pieces));
      } catch (...) {
        failed = true;
      }
    });
    if (failed) throw std::bad_alloc();
  });
}

Status create(const Op* op, Api api, const void* info, void** made) {
  return guarded(api, [&] {
    auto kernel = std::make_unique<Kernel>();
    kernel->api = api;
    kernel->masked = op->variant & kMaskedVariant;
    kernel->packed = op->variant & kPackedVariant;
    kernel->heads = attribute(api, info, "q_num_heads");
    kernel->key_heads = attribute(api, info, "kv_num_heads");
    kernel->causal = attribute(api, info, "is_causal") != 0;
    kernel->scale = float_attribute(api, info, "scale");
    kernel->kernel = attention_kernel(attribute(api, info, "bfloat16") != 0);
    const bool apart = kernel->heads == 0 && kernel->key_heads == 0 && !kernel->packed;
    require(apart || (kernel->heads > 0 && kernel->key_heads > 0 && kernel->heads % kernel->key_heads == 0),
            "q_num_heads must be a multiple of kv_num_heads, or both 0 where heads stand apart");
    *made = kernel.release();
  });
}

Op op_of(int64_t variant) {
  Op op = bare_op<Kernel>(variant, create, compute);
  op.name = [](const Op* self) {
    constexpr const char* names[] = {"Attention", "AttentionMasked", "AttentionPacked", "AttentionPackedMasked"};
    return names[self->variant];
  };
  op.inputs = [](const Op* self) -> size_t {
    return mask_at(self->variant) + (self->variant & kMaskedVariant ? 2u : 0u);
  };
  op.input_type = [](const Op* self, size_t index) {
    const size_t mask = mask_at(self->variant);
    return index < mask ? kFloat : index == mask ? kAnyType : kInt64;
  };
  return op;
}

}  // namespace

std::vector<const Op*> attention_operators() {
  static const Op plain = op_of(0), masked = op_of(kMaskedVariant), packed = op_of(kPackedVariant);
  static const Op both = op_of(kPackedVariant | kMaskedVariant);
  return {&plain, &masked, &packed, &both};
}

}  // namespace toolkit
