// Operators of domain `toolkit.cpu`: Linears of encoders whose weights are int8 a channel, and whose activations are uint8
// a tensor or a token.
//
//   Int8Linear(x, [x_multiplier,] [x_scale, x_zero_point,] W, W_scale, bias,
//              [residual | [y_multiplier,] y_scale, y_zero_point])
//
// What is in brackets is in the name,
//   Int8Linear[Qkv][Smoothed | OfCodes][Tokens][activation][Residual | ToCodes | ToSmoothedCodes]:
//   x float [.., K], rounded as QuantizeLinear(x [* x_multiplier [K]], x_scale [], x_zero_point []) does; OfCodes: uint8
//   Tokens: every vector [K] by a scale and a zero point that put its least at 0 and its greatest at 255, instead of those
//   W int8 [K, N], W_scale float [N], bias float [N]; Qkv: three of each in turn, of one K, and three outputs
//   y = activation(x . W + bias) [+ residual, of y's shape]; to codes: QuantizeLinear(y [* y_multiplier [N]], ..), uint8
// All of it but x and the residual is constant. Sums of products are exact integers.

#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "int8_linear.h"
#include "operators.h"
#include "processor.h"

namespace toolkit {
namespace {

constexpr int kInt8 = 3;
enum Form { kFloats = 0, kSmoothed, kOfCodes, kTokens, kSmoothedTokens, kForms };

// The parts of an operator's name; `variant` of an Op is its place in the list of all.
struct Variant {
  int weights = 1;
  Form form = kFloats;
  Activation activation = kNone;
  Result result = kPlain;
  bool smoothed_result = false;
  std::string name;

  bool tokens() const { return form == kTokens || form == kSmoothedTokens; }
  bool smoothed() const { return form == kSmoothed || form == kSmoothedTokens; }
  size_t weights_at() const { return 1 + (smoothed() ? 1 : 0) + (tokens() ? 0 : 2); }
  size_t rest_at() const { return weights_at() + 3 * static_cast<size_t>(weights); }
  size_t inputs() const {
    return rest_at() + (result == kCodes ? (smoothed_result ? 3 : 2) : result == kResidual ? 1 : 0);
  }
};

std::string name_of(const Variant& v) {
  static const char* const forms[] = {"", "Smoothed", "OfCodes", "Tokens", "SmoothedTokens"};
  static const char* const activations[] = {"", "Relu", "Gelu", "GeluTanh", "QuickGelu"};
  static const char* const results[] = {"", "Residual", "ToCodes"};
  const char* result = v.smoothed_result ? "ToSmoothedCodes" : results[v.result];
  return std::string("Int8Linear") + (v.weights == 3 ? "Qkv" : "") + forms[v.form] + activations[v.activation] + result;
}

const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = [] {
    std::vector<Variant> made;
    const auto add = [&](int weights, int form, int activation, Result result, bool smoothed) {
      Variant v{weights, static_cast<Form>(form), static_cast<Activation>(activation), result, smoothed, ""};
      v.name = name_of(v);
      made.push_back(v);
    };
    for (int form = 0; form < kForms; ++form) {
      add(3, form, kNone, kPlain, false);
      add(1, form, kNone, kResidual, false);
      for (int activation = 0; activation < kActivations; ++activation) {
        add(1, form, activation, kPlain, false);
        if (form >= kTokens) continue;
        add(1, form, activation, kCodes, false);
        add(1, form, activation, kCodes, true);
      }
    }
    return made;
  }();
  return all;
}

const Variant& variant_of(const Op* op) { return variants()[static_cast<size_t>(op->variant)]; }

struct Kernel {
  Api api = nullptr;
  const Variant* variant = nullptr;
  int64_t K = 0, steps = 0;
  std::vector<int64_t> N;  // of each output
  Rounding rounding;
  std::vector<float> multiplier;
  Epilogue epilogue;
  Int8Kernels kernels;
  Packed codes;
  std::unique_ptr<Panel, Free> panels;
  int64_t panel_count = 0;
};

// ---- when a session opens ----

class Constants {
 public:
  Constants(Api api, const void* info) : api_(api), info_(info) {}

  const float* floats(size_t index, int64_t elements) {
    return static_cast<const float*>(constant(api_, info_, index, kFloat, elements, read_));
  }
  float positive(size_t index) {
    const float value = *floats(index, 1);
    if (!(value > 0.0f) || !std::isfinite(value))
      throw std::invalid_argument("input " + std::to_string(index) + " must be a positive scale");
    return value;
  }
  int32_t zero_point(size_t index) {
    return *static_cast<const uint8_t*>(constant(api_, info_, index, kUint8, 1, read_));
  }
  const int8_t* weight(size_t index, int64_t* K, int64_t* N) {
    const auto sizes = matrix_of(api_, info_, index);
    if (*K != 0 && *K != sizes[0])
      throw std::invalid_argument("input " + std::to_string(index) + " must have as many rows as the weights before it");
    // 255 * 128 * K and what the zero point takes from it must fit in 32 bits, whatever the order of the additions.
    if (sizes[0] > 32768) throw std::invalid_argument("K must be at most 32768");
    *K = sizes[0];
    *N = sizes[1];
    return static_cast<const int8_t*>(constant(api_, info_, index, kInt8, *K * *N, read_));
  }
  void give_all_back() const {
    for (const Range& range : read_) give_back(range);
  }

 private:
  Api api_;
  const void* info_;
  std::vector<Range> read_;
};

struct Source {
  const int8_t* codes;
  const float *scale, *bias;
  int64_t N;
};

void pack_codes(const Kernel& kernel, const Source& from, const Panel& panel, int8_t* to) {
  for (int64_t k = 0; k < kernel.K; ++k) {
    const int8_t* row = from.codes + k * from.N + panel.column;
    int8_t* group = to + (k / 4) * panel.vectors * 64 + k % 4;
    for (int n = 0; n < panel.columns; ++n) group[4 * n] = row[n];
  }
}

void pack_panel(const Kernel& kernel, const Source& from, const float* multiplier, Panel& panel, int8_t* to) {
  pack_codes(kernel, from, panel, to);
  panel.codes = to;
  for (int64_t k = 0; k < kernel.K; ++k)
    for (int n = 0; n < panel.columns; ++n) panel.start[n] -= from.codes[k * from.N + panel.column + n];
  for (int n = 0; n < panel.columns; ++n) {
    const int64_t column = panel.column + n;
    panel.scale[n] = kernel.rounding.scale * from.scale[column];
    panel.total[n] = -static_cast<float>(panel.start[n]) * panel.scale[n];
    panel.start[n] *= kernel.rounding.zero_point;
    panel.bias[n] = from.bias[column];
    panel.multiplier[n] = multiplier != nullptr ? multiplier[column] : 1.0f;
  }
}

void pack(Kernel& kernel, const std::vector<Source>& sources, const float* multiplier) {
  int64_t count = 0, vectors = 0;
  for (const Source& from : sources) {
    count += panels_of(from.N);
    vectors += vectors_of(from.N);
  }
  const size_t bytes = static_cast<size_t>(vectors * kernel.steps) * 64, room = static_cast<size_t>(count) * sizeof(Panel);
  kernel.codes = room_for_weights(bytes);
  std::memset(kernel.codes.get(), 0, bytes);
  kernel.panels.reset(reinterpret_cast<Panel*>(allocate(room).release()));
  int8_t* to = reinterpret_cast<int8_t*>(kernel.codes.get());
  for (size_t output = 0; output < sources.size(); ++output)
    for (int64_t column = 0; column < sources[output].N; column += kTileColumns) {
      Panel& panel = *new (kernel.panels.get() + kernel.panel_count++) Panel();
      panel.columns = static_cast<int>(std::min<int64_t>(kTileColumns, sources[output].N - column));
      panel.vectors = vectors_of(panel.columns);
      panel.output = static_cast<int>(output);
      panel.column = column;
      pack_panel(kernel, sources[output], multiplier, panel, to);
      to += panel.vectors * kernel.steps * 64;
    }
}

std::vector<Source> read_weights(Kernel& kernel, Constants& constants) {
  std::vector<Source> sources;
  for (size_t at = kernel.variant->weights_at(); at < kernel.variant->rest_at(); at += 3) {
    Source from{};
    from.codes = constants.weight(at, &kernel.K, &from.N);
    from.scale = constants.floats(at + 1, from.N);
    from.bias = constants.floats(at + 2, from.N);
    sources.push_back(from);
    kernel.N.push_back(from.N);
  }
  kernel.steps = (kernel.K + 3) / 4;
  return sources;
}

void read_rounding(Kernel& kernel, Constants& constants) {
  const bool smoothed = kernel.variant->smoothed();
  const size_t at = smoothed ? 2 : 1;
  if (smoothed) {
    const float* from = constants.floats(1, kernel.K);
    kernel.multiplier.assign(from, from + kernel.K);
    kernel.rounding.multiplier = kernel.multiplier.data();
  }
  if (kernel.variant->tokens()) return;
  kernel.rounding.scale = constants.positive(at);
  kernel.rounding.zero_point = constants.zero_point(at + 1);
}

// What y is multiplied by before it is rounded, a column; nothing where it is not rounded.
std::vector<float> read_result(Kernel& kernel, Constants& constants) {
  const Variant& v = *kernel.variant;
  if (v.result != kCodes) return {};
  const int64_t N = kernel.N[0];
  const size_t at = v.rest_at() + (v.smoothed_result ? 1 : 0);
  const float* given = v.smoothed_result ? constants.floats(v.rest_at(), N) : nullptr;
  const float scale = constants.positive(at);
  kernel.epilogue.zero_point = constants.zero_point(at + 1);
  std::vector<float> multiplier(static_cast<size_t>(N));
  for (size_t n = 0; n < multiplier.size(); ++n) multiplier[n] = (given != nullptr ? given[n] : 1.0f) / scale;
  return multiplier;
}

Status create(const Op* op, Api api, const void* info, void** made) {
  return guarded(api, [&] {
    auto kernel = std::make_unique<Kernel>();
    kernel->api = api;
    kernel->variant = &variant_of(op);
    Constants constants(api, info);
    const std::vector<Source> sources = read_weights(*kernel, constants);
    read_rounding(*kernel, constants);
    const std::vector<float> multiplier = read_result(*kernel, constants);
    kernel->epilogue.activation = kernel->variant->activation;
    kernel->epilogue.result = kernel->variant->result;
    if (kernel->variant->activation >= kGelu) kernel->epilogue.table = table_of(kernel->variant->activation);
    pack(*kernel, sources, multiplier.empty() ? nullptr : multiplier.data());
    kernel->kernels = int8_kernels(kernel->epilogue, kernel->variant->tokens(), instructions() == kAvx512Vnni);
    constants.give_all_back();
    *made = kernel.release();
  });
}

// ---- when it runs ----

struct Run {
  int64_t M = 0;
  const void* x = nullptr;
  const float* residual = nullptr;
  std::vector<uint8_t*> y;
};

// Where the codes of x are, so many bytes a row, and what each row's own range made of it.
struct Codes {
  uint8_t* room = nullptr;
  const uint8_t* rows = nullptr;
  int64_t stride = 0;
  Token* tokens = nullptr;

  Token* token(int64_t row) const { return tokens != nullptr ? tokens + row : nullptr; }
};

Run open_run(const Kernel& kernel, void* context) {
  Rows rows = rows_of(kernel.api, context, kernel.K);
  Run run;
  run.M = rows.count;
  run.x = rows.data;
  if (kernel.variant->result == kResidual)
    run.residual = residual_of(kernel.api, context, kernel.variant->rest_at(), run.M * kernel.N[0]);
  for (size_t i = 0; i < kernel.N.size(); ++i)
    run.y.push_back(static_cast<uint8_t*>(output_of(kernel.api, context, i, rows.sizes, kernel.N[i])));
  return run;
}

// Rows end on a whole step; so many bytes more keep them apart in the cache where K is a power of two.
Codes codes_of(const Kernel& kernel, const Run& run) {
  if (kernel.variant->form == kOfCodes && kernel.K % 4 == 0)
    return {nullptr, static_cast<const uint8_t*>(run.x), kernel.K};
  Codes codes;
  codes.stride = (kernel.K + 63) / 64 * 64 + 64;
  const size_t bytes = static_cast<size_t>(run.M * codes.stride);
  const size_t more = kernel.variant->tokens() ? static_cast<size_t>(run.M) * sizeof(Token) : 0;
  codes.room = scratch(bytes + more);
  codes.rows = codes.room;
  if (more != 0) codes.tokens = reinterpret_cast<Token*>(codes.room + bytes);
  return codes;
}

void round_row(const Kernel& kernel, const float* x, uint8_t* to, Token* token) {
  if (token != nullptr) *token = kernel.kernels.round_token(kernel.rounding.multiplier, x, to, kernel.K);
  else kernel.kernels.round(kernel.rounding, x, to, kernel.K);
}

void round_rows(const Kernel& kernel, const Run& run, const Codes& codes, int64_t first, int64_t last) {
  if (codes.room == nullptr) return;
  for (int64_t m = first; m < last; ++m) {
    uint8_t* to = codes.room + m * codes.stride;
    if (kernel.variant->form == kOfCodes)
      std::memcpy(to, static_cast<const uint8_t*>(run.x) + m * kernel.K, static_cast<size_t>(kernel.K));
    else
      round_row(kernel, static_cast<const float*>(run.x) + m * kernel.K, to, codes.token(m));
    std::memset(to + kernel.K, 0, static_cast<size_t>(4 * kernel.steps - kernel.K));
  }
}

void multiply_tile(const Kernel& kernel, const Run& run, const Codes& codes, const Panel& panel, int64_t m, int rows) {
  alignas(kLine) int32_t sums[kTileRows * kTileColumns];
  const int64_t stride = kernel.N[static_cast<size_t>(panel.output)], at = m * stride + panel.column;
  const size_t element = kernel.variant->result == kCodes ? 1 : sizeof(float);
  kernel.kernels.products(panel, codes.rows + m * codes.stride, codes.stride, kernel.steps, rows, sums);
  uint8_t* y = run.y[static_cast<size_t>(panel.output)] + static_cast<size_t>(at) * element;
  const float* residual = run.residual != nullptr ? run.residual + at : nullptr;
  kernel.kernels.finish(panel, kernel.epilogue, sums, codes.token(m), rows, residual, y, stride);
}

constexpr int64_t kFewRows = 32;

// Few rows: threads share the columns. Many: each takes rows, rounds them and multiplies them with all the columns.
void multiply_all(const Kernel& kernel, void* context, const Run& run) {
  const Codes codes = codes_of(kernel, run);
  const auto tile = [&](int64_t p, int64_t, int64_t m, int rows) {
    multiply_tile(kernel, run, codes, kernel.panels.get()[p], m, rows);
  };
  if (run.M >= kFewRows) {
    const int64_t pieces = std::max<int64_t>(chunks_of(run.M, kFewRows, run.M), 2);
    return in_pieces(kernel.api, context, pieces, [&](size_t i) {
      const int64_t first = cut(run.M, i, pieces), last = cut(run.M, i + 1, pieces);
      round_rows(kernel, run, codes, first, last);
      over_panels(first, last, 0, kernel.panel_count, tile);
    });
  }
  round_rows(kernel, run, codes, 0, run.M);
  const int64_t work = run.M * kernel.steps * kernel.panel_count;
  const int64_t pieces = chunks_of(work, kStepsEach, kernel.panel_count);
  in_pieces(kernel.api, context, pieces, [&](size_t i) {
    over_panels(0, run.M, cut(kernel.panel_count, i, pieces), cut(kernel.panel_count, i + 1, pieces), tile);
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

int type_of_input(const Op* op, size_t index) {
  const Variant& v = variant_of(op);
  if (index == 0) return v.form == kOfCodes ? kUint8 : kFloat;
  if (index + 1 == v.weights_at() && !v.tokens()) return kUint8;
  if (index >= v.weights_at() && index < v.rest_at()) return (index - v.weights_at()) % 3 == 0 ? kInt8 : kFloat;
  return v.result == kCodes && index + 1 == v.inputs() ? kUint8 : kFloat;
}

Op op_of(size_t variant) {
  Op op = bare_op<Kernel>(static_cast<int64_t>(variant), create, compute);
  op.name = [](const Op* self) { return variant_of(self).name.c_str(); };
  op.input_type = type_of_input;
  op.inputs = [](const Op* self) { return variant_of(self).inputs(); };
  op.output_type = [](const Op* self, size_t) { return variant_of(self).result == kCodes ? kUint8 : kFloat; };
  op.outputs = [](const Op* self) { return static_cast<size_t>(variant_of(self).weights); };
  return op;
}

}  // namespace

std::vector<const Op*> int8_linear_operators() {
  static const std::vector<Op> made = [] {
    std::vector<Op> ops;
    for (size_t i = 0; i < variants().size(); ++i) ops.push_back(op_of(i));
    return ops;
  }();
  std::vector<const Op*> ops;
  for (const Op& op : made) ops.push_back(&op);
  return ops;
}

}  // namespace toolkit
