// What the int8 Linear multiplies and how: shared by its operator and its kernels.

#pragma once

#include <cstdint>
#include <vector>

#include "activation_table.h"
#include "linear_tiles.h"
#include "memory.h"

namespace toolkit {

// Up to 64 neighbouring columns of one weight.
struct Panel {
  const int8_t* codes = nullptr;  // [steps][vectors][16][4]: four k of each column side by side, zero beyond K and N
  int vectors = 0, columns = 0;   // 16 columns each; how many of them exist
  int output = 0;
  int64_t column = 0;  // the first, in that output
  alignas(kLine) int32_t start[kTileColumns] = {};     // -(zero point of x) * (sum of the column)
  alignas(kLine) float scale[kTileColumns] = {};       // of x times of the column; of the column alone by tokens
  alignas(kLine) float total[kTileColumns] = {};       // scale * (sum of the column)
  alignas(kLine) float bias[kTileColumns] = {};
  alignas(kLine) float multiplier[kTileColumns] = {};  // of y before it is rounded to codes
};

// x float -> codes = clamp(rint(x * multiplier / scale) + zero_point), as QuantizeLinear has it.
// A token's own takes the scale's inverse for a factor instead of dividing.
struct Rounding {
  float scale = 1.0f, inverse = 1.0f;
  int32_t zero_point = 0;
  const float* multiplier = nullptr;  // [K] or nothing
};

// x of one row, [K], is about low + scale * code: what that row's own range makes of it.
struct Token {
  float scale = 1.0f, low = 0.0f;
};

enum Result { kPlain = 0, kResidual, kCodes };

struct Epilogue {
  Activation activation = kNone;
  Result result = kPlain;
  int32_t zero_point = 0;
  ActivationTable table;
};

using RoundRow = void (*)(const Rounding&, const float* x, uint8_t* to, int64_t K);
// The same with the scale and zero point that the row's own range gives, down to 0 and up to 0.
using RoundToken = Token (*)(const float* multiplier, const float* x, uint8_t* to, int64_t K);
// sums [rows][64] += codes of so many rows, `stride` bytes apart, times the panel.
using Products = void (*)(const Panel&, const uint8_t* x, int64_t stride, int64_t steps, int rows, int32_t* sums);
// The rows of one panel from their sums; `y` and `residual` point at its first column, `stride` elements a row.
// `tokens` of the rows, or nothing where one scale is all rows'.
using Finish = void (*)(const Panel&, const Epilogue&, const int32_t* sums, const Token* tokens, int rows,
                        const float* residual, void* y, int64_t stride);

struct Int8Kernels {
  RoundRow round = nullptr;
  RoundToken round_token = nullptr;
  Products products = nullptr;
  Finish finish = nullptr;
};

Int8Kernels int8_kernels(const Epilogue& epilogue, bool tokens, bool vnni);

}  // namespace toolkit
