// Row by row through an engine of one fixed shape, which here adds 1 to its input.
#include "rows.hpp"

#include "check.hpp"

namespace {

using toolkit::DType;
using toolkit::Shape;
using toolkit::Tensor;
using toolkit::Tensors;
using toolkit::TensorSpec;

class PlusOne final : public toolkit::Engine {
 public:
  const std::vector<TensorSpec>& inputs() const override { return specs_; }
  const std::vector<TensorSpec>& outputs() const override { return specs_; }
  const std::string& ran_on() const override { return name_; }
  toolkit::Result<Tensors> run(const Tensors& inputs) override {
    auto x = inputs.at("x");
    shape_ = x.shape;
    for (std::size_t i = 0; i < x.count(); ++i) x.as<float>()[i] += 1;
    return Tensors{{"x", x}};
  }
  Shape shape_;

 private:
  std::vector<TensorSpec> specs_{{"x", DType::float32, {{1, ""}, {4, ""}}}};
  std::string name_ = "test";
};

}  // namespace

int main() {
  PlusOne engine;
  const std::vector<TensorSpec> declared{{"x", DType::float32, {{-1, "batch"}, {-1, "sequence"}}}};
  const Tensors inputs{{"x", Tensor::of<float>({2, 3}, {1, 2, 3, 4, 5, 6})}};
  CHECK(toolkit::needs_rows(inputs, engine.inputs()));
  const auto outputs = toolkit::run_rows(engine, engine.inputs(), inputs, declared, {{"batch", 2}, {"sequence", 3}});
  CHECK(outputs && engine.shape_ == (Shape{1, 4}));
  CHECK(outputs->at("x").shape == (Shape{2, 3}));
  CHECK(toolkit::as_floats(outputs->at("x")) == (std::vector<float>{2, 3, 4, 5, 6, 7}));

  const Tensors wide{{"x", Tensor::of<float>({1, 5}, {1, 2, 3, 4, 5})}};
  const auto refused = toolkit::run_rows(engine, engine.inputs(), wide, declared, {{"batch", 1}, {"sequence", 5}});
  CHECK(!refused && refused.error().message.find("'x'") != std::string::npos);

  const Tensors exact{{"x", Tensor::of<float>({1, 4}, {1, 2, 3, 4})}};
  CHECK(!toolkit::needs_rows(exact, engine.inputs()));
  return done();
}
