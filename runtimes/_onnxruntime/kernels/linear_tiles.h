// How the Linears of encoders are cut and shared among threads: tiles of up to 6 rows x 64 columns, whose sums stay in
// registers over K or a part of it.

#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_interface.h"

namespace toolkit {

constexpr int kTileRows = 6, kVector = 16, kTileVectors = 4, kTileColumns = kVector * kTileVectors;

inline int64_t panels_of(int64_t N) { return (N + kTileColumns - 1) / kTileColumns; }
inline int vectors_of(int64_t columns) { return static_cast<int>((columns + kVector - 1) / kVector); }

// K and N of a constant [K, N].
inline std::array<int64_t, 2> matrix_of(Api api, const void* info, size_t index) {
  int is_constant = 0;
  const void* tensor = nullptr;
  call(api, kConstantInput, info, index, &is_constant, &tensor);
  const std::vector<int64_t> sizes = is_constant && tensor ? Shape(api, tensor).dimensions() : std::vector<int64_t>{};
  if (sizes.size() != 2 || sizes[0] < 1 || sizes[1] < 1)
    throw std::invalid_argument("input " + std::to_string(index) + " must be a constant [K, N], neither of them 0");
  return {sizes[0], sizes[1]};
}

// x [.., K] as so many rows; `sizes` with another last one are those of an output.
struct Rows {
  const void* data = nullptr;
  int64_t count = 1;
  std::vector<int64_t> sizes;
};

inline Rows rows_of(Api api, void* context, int64_t K) {
  Rows rows;
  const void* input = nullptr;
  call(api, kInput, static_cast<const void*>(context), size_t{0}, &input);
  rows.sizes = Shape(api, input).dimensions();
  if (rows.sizes.empty() || rows.sizes.back() != K)
    throw std::invalid_argument("the last dimension of x must be " + std::to_string(K));
  for (size_t i = 0; i + 1 < rows.sizes.size(); ++i) rows.count *= rows.sizes[i];
  rows.data = data_of(api, input);
  return rows;
}

inline const float* residual_of(Api api, void* context, size_t index, int64_t elements) {
  const void* residual = nullptr;
  call(api, kInput, static_cast<const void*>(context), index, &residual);
  if (Shape(api, residual).elements() != elements)
    throw std::invalid_argument("the residual must have the shape of the output");
  return static_cast<const float*>(data_of(api, residual));
}

inline void* output_of(Api api, void* context, size_t index, std::vector<int64_t>& sizes, int64_t N) {
  sizes.back() = N;
  void* output = nullptr;
  call(api, kOutput, context, index, static_cast<const int64_t*>(sizes.data()), sizes.size(), &output);
  return data_of(api, output);
}

// Pieces of work that threads share are of about so many steps: one row with 64 columns of a weight.
constexpr int64_t kStepsEach = 2048;

// Rows in tiles of nearly one size; a panel stays in the cache while all of them pass.
template <class Tile>
void over_panels(int64_t first_row, int64_t last_row, int64_t first_panel, int64_t last_panel, const Tile& tile) {
  const int64_t rows = last_row - first_row, tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t p = first_panel; p < last_panel; ++p)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t m = first_row + rows * t / tiles, end = first_row + rows * (t + 1) / tiles;
      tile(p, t, m, static_cast<int>(end - m));
    }
}

}  // namespace toolkit
