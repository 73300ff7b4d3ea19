#include "json.hpp"

#include <string>

#include "check.hpp"
#include "noise.hpp"

using toolkit::parse_json;

namespace {

bool refuses(const std::string& text) { return !parse_json(text); }

void test_values() {
  const auto root = parse_json(R"( {"a": [1, -2.5e2, true, null], "b": {"c": "x\n\u00e9\ud83d\ude00"}} )");
  CHECK(root);
  CHECK((*root)["a"].array().size() == 4);
  CHECK((*root)["a"].array()[0].integer() == 1);
  CHECK((*root)["a"].array()[1].number() == -250);
  CHECK((*root)["a"].array()[2].boolean());
  CHECK((*root)["a"].array()[3].is_null());
  CHECK((*root)["b"]["c"].text() == "x\n\xc3\xa9\xf0\x9f\x98\x80");
  CHECK((*root)["nothing"]["deeper"].is_null());
  CHECK((*root)["a"].array()[1].integer(-1) == -250);
  CHECK(parse_json("0.5")->integer(7) == 7);
}

void test_refusals() {
  for (const char* text : {"", "{", "[1,]", "{\"a\" 1}", "{\"a\":1,}", "01", "1.", "1e", "-", "nul", "\"a", "\"\\x\"",
                           "\"\\ud800\"", "\"\\udc00\"", "\"\n\"", "[1] 2", "1e999", "NaN", "{1: 2}"}) {
    CHECK(refuses(text));
  }
  CHECK(refuses(std::string(100000, '[')));
  CHECK(parse_json("[1,\n\n x]").error().message.find("line 3") == 0);
}

void test_noise() {
  const std::string whole = R"({"a": [1, -2.5e2, true, null, {"b": "\u00e9\ud83d\ude00"}], "c": ""})";
  for (std::size_t size = 0; size < whole.size(); ++size) CHECK(refuses(whole.substr(0, size)));
  each_mutation(whole, [](const std::string& mutated) { (void)parse_json(mutated); });
}

}  // namespace

int main() {
  test_values();
  test_refusals();
  test_noise();
  return done();
}
