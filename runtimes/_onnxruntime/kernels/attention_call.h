// What one call of the attention operator is about: tensors read by strides, sizes, and what the scores go through.

#pragma once

#include <cstddef>
#include <cstdint>

namespace toolkit {

// Rows of one head; strides in elements, a head's own numbers stand side by side.
struct Heads {
  float* data = nullptr;
  int64_t batch = 0, head = 0, row = 0;

  float* at(int64_t b, int64_t h, int64_t i) const { return data + b * batch + h * head + i * row; }
};

// A stride of 0 is a dimension that is broadcast: nothing is ever written out.
struct Mask {
  const uint8_t* allowed = nullptr;  // either this,
  const float* added = nullptr;      // or that, or neither
  int64_t batch = 0, head = 0, query = 0, key = 0;

  bool any() const { return allowed != nullptr || added != nullptr; }
  int64_t at(int64_t b, int64_t h, int64_t i, int64_t j) const { return b * batch + h * head + i * query + j * key; }
};

struct AttentionCall {
  Heads query, key, value, output;
  Mask mask;
  int64_t batches = 0, heads = 0, key_heads = 0, queries = 0, keys = 0, size = 0, value_size = 0;
  float scale = 1.0f;
  bool causal = false;

  bool masked_by_key() const { return mask.any() && mask.query == 0; }
  bool masked_by_pair() const { return mask.any() && mask.query != 0; }
};

// Blocks of queries [first, last) of all heads of all batches, the blocks of a head after each other.
using Attend = void (*)(const AttentionCall&, int64_t blocks, int64_t first, int64_t last);

struct AttentionKernel {
  int64_t most_queries;  // of one block
  Attend attend;
};

// The best for this processor; `rounded` allows products of bfloat16, summed in float.
AttentionKernel attention_kernel(bool rounded);

}  // namespace toolkit
