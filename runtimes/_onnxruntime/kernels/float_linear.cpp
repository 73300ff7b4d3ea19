// Operators of domain `toolkit.cpu`: float32 Linears of encoders with what follows them.
//
//   FloatLinear[activation](x, W, bias), FloatLinearResidual(x, W, bias, residual)
//
//   x float [.., K]; W float [K, N] and bias float [N], both constant; residual float of y's shape
//   y = activation(x . W + bias) [+ residual]

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "activation_vectors.h"
#include "linear_tiles.h"
#include "operators.h"
#include "processor.h"

namespace toolkit {
namespace {

constexpr size_t kWeight = 1, kBias = 2, kResidualInput = 3;
constexpr int64_t kResidualVariant = kActivations;  // the last `variant`; those before it are the activations

// Up to 64 neighbouring columns of the weight.
struct Panel {
  const float* weights = nullptr;  // [K][vectors][16], zero beyond N
  int vectors = 0, columns = 0;    // 16 columns each; how many of them exist
  int64_t column = 0;
  alignas(kLine) float bias[kTileColumns] = {};
};

// What is to be in the cache soon: a line for each of K steps.
struct Ahead {
  const float* lines = nullptr;
  int64_t step = 0;  // numbers between two of them; 0 where nothing is to be fetched
};

// sums [rows][64] = so many rows of x, K numbers apart, times the panel. Sums over so many k are added up, and the bias
// comes last: rounding grows with what is added to, by 5 dB for one sum over K = 768. These are ONNX Runtime's bits.
constexpr int64_t kDepth = 256;
using Products = void (*)(const Panel&, const float* x, int64_t K, int rows, Ahead ahead, float* sums);
// The rows of one panel from their sums; `y` and `residual` point at its first column, `stride` elements a row.
using Finish = void (*)(const Panel&, const ActivationTable&, const float* sums, int rows, const float* residual,
                        float* y, int64_t stride);

struct Kernel {
  Api api = nullptr;
  int64_t K = 0, N = 0;
  bool residual = false;
  ActivationTable table;
  Products products = nullptr;
  Finish finish = nullptr;
  Packed weights;
  std::unique_ptr<Panel, Free> panels;
};

// ---- arithmetic, for any processor ----

void products_portable(const Panel& panel, const float* x, int64_t K, int rows, Ahead, float* sums) {
  const int width = panel.vectors * kVector;
  for (int r = 0; r < rows; ++r, x += K, sums += kTileColumns) {
    std::fill(sums, sums + kTileColumns, 0.0f);
    for (int64_t from = 0; from < K; from += kDepth) {
      float part[kTileColumns] = {};
      for (int64_t k = from; k < std::min(from + kDepth, K); ++k)
        for (int n = 0; n < width; ++n) part[n] += x[k] * panel.weights[k * width + n];
      for (int n = 0; n < width; ++n) sums[n] += part[n];
    }
  }
}

template <int Shape>
float shaped(const ActivationTable& table, float y) {
  if (Shape == kNone) return y;
  return Shape == kGelu ? table(y) : y < 0.0f ? 0.0f : y;  // NaN stays
}

template <int Shape, bool Residual>
void finish_portable(const Panel& panel, const ActivationTable& table, const float* sums, int rows,
                     const float* residual, float* y, int64_t stride) {
  for (int r = 0; r < rows; ++r, sums += kTileColumns)
    for (int n = 0; n < panel.columns; ++n) {
      const float made = shaped<Shape>(table, sums[n] + panel.bias[n]);
      y[r * stride + n] = Residual ? made + residual[r * stride + n] : made;
    }
}

// ---- with AVX512 ----

#if defined(HAS_AVX2_PATH)

// Rows x Vectors sums stay in registers over a part of K.
template <int Rows, int Vectors>
AVX512 void products_of(const Panel& panel, const float* x, int64_t K, Ahead ahead, float* sums) {
  const float* w = panel.weights;
  for (int64_t from = 0; from < K; from += kDepth) {
    __m512 sum[Rows][Vectors];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = _mm512_setzero_ps();
    const int64_t end = std::min(from + kDepth, K);
    for (int64_t k = from; k < end; ++k, w += Vectors * kVector, ahead.lines += ahead.step) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead.lines), _MM_HINT_T1);
      __m512 weight[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) weight[v] = _mm512_load_ps(w + v * kVector);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const __m512 one = _mm512_set1_ps(x[r * K + k]);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum[r][v] = _mm512_fmadd_ps(one, weight[v], sum[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        float* to = sums + r * kTileColumns + v * kVector;
        _mm512_store_ps(to, from == 0 ? sum[r][v] : _mm512_add_ps(_mm512_load_ps(to), sum[r][v]));
      }
  }
}

using ProductsOf = void (*)(const Panel&, const float*, int64_t, Ahead, float*);

template <size_t... I>
constexpr std::array<ProductsOf, sizeof...(I)> all_products(std::index_sequence<I...>) {
  return {products_of<I / kTileVectors + 1, I % kTileVectors + 1>...};
}

void products_avx512(const Panel& panel, const float* x, int64_t K, int rows, Ahead ahead, float* sums) {
  static constexpr auto all = all_products(std::make_index_sequence<kTileRows * kTileVectors>());
  all[static_cast<size_t>((rows - 1) * kTileVectors + panel.vectors - 1)](panel, x, K, ahead, sums);
}

template <int Shape, bool Residual>
AVX512 void finish_avx512(const Panel& panel, const ActivationTable& terms, const float* sums, int rows,
                          const float* residual, float* y, int64_t stride) {
  const TableRegisters table(terms);
  for (int r = 0; r < rows; ++r, sums += kTileColumns)
    for (int v = 0; v < panel.vectors; ++v) {
      const int left = panel.columns - v * kVector;
      const __mmask16 mask = static_cast<__mmask16>(left >= kVector ? 0xffff : (1 << left) - 1);
      const int64_t at = r * stride + v * kVector;
      __m512 made = _mm512_add_ps(_mm512_load_ps(sums + v * kVector), _mm512_load_ps(panel.bias + v * kVector));
      if constexpr (Shape == kRelu) made = _mm512_max_ps(_mm512_setzero_ps(), made);  // in this order NaN stays
      if constexpr (Shape == kGelu) made = table(made);
      if constexpr (Residual) made = _mm512_add_ps(made, _mm512_maskz_loadu_ps(mask, residual + at));
      _mm512_mask_storeu_ps(y + at, mask, made);
    }
}

#endif

void choose(Kernel& kernel, int activation) {
#if defined(HAS_AVX2_PATH)
  if (instructions() == kAvx512Vnni) {
    kernel.products = products_avx512;
    kernel.finish = kernel.residual         ? finish_avx512<kNone, true>
                    : activation == kNone   ? finish_avx512<kNone, false>
                    : activation == kRelu   ? finish_avx512<kRelu, false>
                                            : finish_avx512<kGelu, false>;
    return;
  }
#endif
  kernel.products = products_portable;
  kernel.finish = kernel.residual         ? finish_portable<kNone, true>
                  : activation == kNone   ? finish_portable<kNone, false>
                  : activation == kRelu   ? finish_portable<kRelu, false>
                                          : finish_portable<kGelu, false>;
}

// ---- when a session opens ----

void pack(Kernel& kernel, const float* weight, const float* bias) {
  const size_t count = static_cast<size_t>(panels_of(kernel.N));
  const size_t width = static_cast<size_t>(vectors_of(kernel.N)) * kVector;
  kernel.weights = room_for_weights(width * static_cast<size_t>(kernel.K) * sizeof(float));
  kernel.panels.reset(reinterpret_cast<Panel*>(allocate(count * sizeof(Panel)).release()));
  float* to = reinterpret_cast<float*>(kernel.weights.get());
  for (size_t p = 0; p < count; ++p) {
    Panel& panel = *new (kernel.panels.get() + p) Panel();
    panel.weights = to;
    panel.column = static_cast<int64_t>(p) * kTileColumns;
    panel.columns = static_cast<int>(std::min<int64_t>(kTileColumns, kernel.N - panel.column));
    panel.vectors = vectors_of(panel.columns);
    const size_t columns = static_cast<size_t>(panel.columns), room = static_cast<size_t>(panel.vectors) * kVector;
    std::memcpy(panel.bias, bias + panel.column, columns * sizeof(float));
    for (int64_t k = 0; k < kernel.K; ++k, to += room) {
      std::memcpy(to, weight + k * kernel.N + panel.column, columns * sizeof(float));
      std::memset(to + columns, 0, (room - columns) * sizeof(float));
    }
  }
}

Status create(const Op* op, Api api, const void* info, void** made) {
  return guarded(api, [&] {
    auto kernel = std::make_unique<Kernel>();
    kernel->api = api;
    kernel->residual = op->variant == kResidualVariant;
    const auto [K, N] = matrix_of(api, info, kWeight);
    kernel->K = K;
    kernel->N = N;
    std::vector<Range> read;
    const void* weight = constant(api, info, kWeight, kFloat, kernel->K * kernel->N, read);
    const void* bias = constant(api, info, kBias, kFloat, kernel->N, read);
    pack(*kernel, static_cast<const float*>(weight), static_cast<const float*>(bias));
    const int activation = kernel->residual ? kNone : static_cast<int>(op->variant);
    if (activation >= kGelu) kernel->table = table_of(static_cast<Activation>(activation));
    choose(*kernel, activation);
    for (const Range& range : read) give_back(range);
    *made = kernel.release();
  });
}

// ---- when it runs ----

struct Run {
  int64_t M = 0;
  const float *x = nullptr, *residual = nullptr;
  float* y = nullptr;
};

Run open_run(const Kernel& kernel, void* context) {
  Rows rows = rows_of(kernel.api, context, kernel.K);
  Run run;
  run.M = rows.count;
  run.x = static_cast<const float*>(rows.data);
  if (kernel.residual) run.residual = residual_of(kernel.api, context, kResidualInput, run.M * kernel.N);
  run.y = static_cast<float*>(output_of(kernel.api, context, 0, rows.sizes, kernel.N));
  return run;
}

// The panel behind this one is fetched from memory while the first tiles of this one are computed.
Ahead ahead_of(const Kernel& kernel, const Panel& panel, int64_t tile) {
  const Panel* next = &panel + 1;
  if (next == kernel.panels.get() + panels_of(kernel.N) || tile >= next->vectors) return {panel.weights, 0};
  return {next->weights + tile * kernel.K * kVector, kVector};
}

void multiply_tile(const Kernel& kernel, const Run& run, const Panel& panel, int64_t tile, int64_t m, int rows) {
  alignas(kLine) float sums[kTileRows * kTileColumns];
  const int64_t at = m * kernel.N + panel.column;
  kernel.products(panel, run.x + m * kernel.K, kernel.K, rows, ahead_of(kernel, panel, tile), sums);
  const float* residual = run.residual != nullptr ? run.residual + at : nullptr;
  kernel.finish(panel, kernel.table, sums, rows, residual, run.y + at, kernel.N);
}

constexpr int64_t kBlockRows = 128;

// A panel is fetched once for a block of rows. Neighbouring pieces are blocks with the same panels, so that threads
// that work side by side fetch them from memory once.
void multiply_all(const Kernel& kernel, void* context, const Run& run) {
  const int64_t panels = panels_of(kernel.N), blocks = std::max<int64_t>((run.M + kBlockRows / 2) / kBlockRows, 1);
  const int64_t groups = chunks_of(run.M / blocks * kernel.K * panels, kStepsEach, panels);
  in_pieces(kernel.api, context, blocks * groups, [&](size_t i) {
    const size_t block = i % static_cast<size_t>(blocks), group = i / static_cast<size_t>(blocks);
    over_panels(cut(run.M, block, blocks), cut(run.M, block + 1, blocks), cut(panels, group, groups),
                cut(panels, group + 1, groups), [&](int64_t p, int64_t t, int64_t m, int rows) {
                  multiply_tile(kernel, run, kernel.panels.get()[p], t, m, rows);
                });
  });
}

Status compute(void* opened, void* context) {
  const Kernel& kernel = *static_cast<Kernel*>(opened);
  return guarded(kernel.api, [&] {
    const Run run = open_run(kernel, context);
    if (run.M != 0) multiply_all(kernel, context, run);
  });
}

// ---- the operators ----

const char* name_of(const Op* op) {
  static const char* const names[] = {"FloatLinear",          "FloatLinearRelu",      "FloatLinearGelu",
                                      "FloatLinearGeluTanh",  "FloatLinearQuickGelu", "FloatLinearResidual"};
  return names[op->variant];
}

Op op_of(int64_t variant) {
  Op op = bare_op<Kernel>(variant, create, compute);
  op.name = name_of;
  op.input_type = [](const Op*, size_t) { return kFloat; };
  op.inputs = [](const Op* self) { return kResidualInput + (self->variant == kResidualVariant ? 1 : 0); };
  return op;
}

}  // namespace

std::vector<const Op*> float_linear_operators() {
  static const std::array<Op, kActivations + 1> made = [] {
    std::array<Op, kActivations + 1> ops;
    for (size_t i = 0; i < ops.size(); ++i) ops[i] = op_of(static_cast<int64_t>(i));
    return ops;
  }();
  std::vector<const Op*> ops;
  for (const Op& op : made) ops.push_back(&op);
  return ops;
}

}  // namespace toolkit
