// Continues a prompt, printing text as it comes; the cache of keys and values stays in place where the graph allows.
#include <cmath>
#include <sstream>

#include "chat.hpp"
#include "generation.hpp"
#include "options.hpp"
#include "pipeline.hpp"
#include "report.hpp"
#include "text_stream.hpp"

namespace {

using toolkit::Error;
using toolkit::Failure;
using toolkit::Result;
using Tokens = std::vector<std::int64_t>;

constexpr const char* kUsage =
    "usage: generate BUNDLE PROMPT [--max-new-tokens N] [--temperature T] [--top-p P] [--seed S] [--context N]\n"
    "                [--chatml] [--system TEXT]\n"
    "       generate BUNDLE --tokens \"1 2 3\" …      prints tokens, needs no tokenizer graph\n";

struct Request {
  std::string bundle, prompt, system;
  bool chatml = false;
  Tokens tokens;
  std::int64_t context = 0;
  toolkit::Generation generation;
};

Result<Tokens> read_tokens(const std::string& text) {
  Tokens tokens;
  std::istringstream stream(text);
  for (std::int64_t token = 0; stream >> token;) tokens.push_back(token);
  if (!stream.eof()) return Error{"--tokens takes numbers", ""};
  return tokens;
}

Failure read_numbers(const Options& options, Request& request) {
  const auto most = number_option(options, "--max-new-tokens", 128, 1, 1e9);
  const auto temperature = number_option(options, "--temperature", 0, 0, 1e6);
  const auto top_p = number_option(options, "--top-p", 1, 1e-9, 1);
  const auto seed = number_option(options, "--seed", 0, 0, 1e15);
  const auto context = number_option(options, "--context", 0, 1, 1e9);
  for (const auto* number : {&most, &temperature, &top_p, &seed, &context}) {
    if (!*number) return number->error();
  }
  request.generation.max_new_tokens = static_cast<std::int64_t>(*most);
  request.generation.sampling = {*temperature, *top_p, static_cast<std::uint64_t>(*seed)};
  request.context = static_cast<std::int64_t>(*context);
  return std::nullopt;
}

Result<Request> read_request(int count, char** arguments) {
  const auto options = read_options(
      count, arguments,
      {"--max-new-tokens", "--temperature", "--top-p", "--seed", "--context", "--system", "--tokens"}, {"--chatml"});
  if (!options) return options.error();
  Request request;
  if (auto failure = read_numbers(*options, request)) return *failure;
  const auto tokens = read_tokens(options->text("--tokens"));
  if (!tokens) return tokens.error();
  request.tokens = *tokens;
  if (options->rest.size() != (request.tokens.empty() ? 2 : 1)) return Error{"give a bundle and a prompt", ""};
  request.bundle = options->rest[0];
  if (request.tokens.empty()) request.prompt = options->rest[1];
  request.system = options->text("--system");
  request.chatml = options->has("--chatml");
  if (!request.system.empty() && !request.chatml) return Error{"--system needs --chatml", ""};
  return request;
}

Result<Tokens> encode(toolkit::Pipeline& pipeline, const Request& request) {
  auto text = Result<std::string>(request.prompt);
  if (request.chatml) text = toolkit::as_chatml(pipeline.bundle(), request.prompt, request.system);
  if (!text) return text.error();
  const auto inputs = pipeline.from_texts({*text});
  if (!inputs) return inputs.error();
  const auto ids = inputs->find("input_ids");
  const auto* values = ids == inputs->end() ? nullptr : ids->second.as<std::int64_t>();
  if (values == nullptr) return Error{"the graph before the model makes no input_ids", ""};
  return Tokens(values, values + ids->second.count());
}

/// Tokens to text, through the graph after the model.
Result<std::string> decode(toolkit::Pipeline& pipeline, const Tokens& tokens) {
  if (tokens.empty()) return std::string();
  const auto& takes = pipeline.manifest().postprocess.inputs;
  if (takes.size() != 1) return Error{"the graph after the model does not take tokens", ""};
  const auto count = static_cast<std::int64_t>(tokens.size());
  const auto shape = takes[0].axes.size() == 2 ? toolkit::Shape{1, count} : toolkit::Shape{count};
  const auto answers = pipeline.finish({{takes[0].name, toolkit::Tensor::of(shape, tokens)}});
  if (!answers) return answers.error();
  for (const auto& [name, tensor] : *answers) {
    if (!tensor.texts.empty()) return tensor.texts[0];
  }
  return Error{"the graph after the model makes no text", ""};
}

void show(const std::string& text) { std::cout << text << std::flush; }

Result<toolkit::Generated> stream_text(toolkit::Pipeline& pipeline, toolkit::Decoder& decoder, const Tokens& prompt,
                                       const toolkit::Generation& settings) {
  auto text = toolkit::TextStream::start([&](const Tokens& tokens) { return decode(pipeline, tokens); }, prompt);
  if (!text) return text.error();
  const auto tell = [&](std::int64_t token) -> Failure {
    const auto piece = text->push(token);
    if (!piece) return piece.error();
    show(*piece);
    return std::nullopt;
  };
  auto generated = toolkit::generate(decoder, prompt, settings, tell);
  if (!generated) return generated.error();
  const auto rest = text->flush();
  if (!rest) return rest.error();
  show(*rest + "\n");
  return generated;
}

Result<toolkit::Generated> print_tokens(toolkit::Decoder& decoder, const Tokens& prompt,
                                        const toolkit::Generation& settings) {
  auto generated = toolkit::generate(decoder, prompt, settings, [](std::int64_t) { return Failure(); });
  if (!generated) return generated.error();
  for (const auto token : generated->tokens) show(std::to_string(token) + " ");
  show("\n");
  return generated;
}

Failure run(Request request) {
  auto pipeline = toolkit::Pipeline::open(request.bundle);
  if (!pipeline) return pipeline.error();
  const auto prompt = request.tokens.empty() ? encode(*pipeline, request) : Result<Tokens>(request.tokens);
  if (!prompt) return prompt.error();
  // The last token that is chosen needs no place.
  const auto needed = static_cast<std::int64_t>(prompt->size()) + request.generation.max_new_tokens - 1;
  const auto& entry = pipeline->manifest().decoder;
  const auto limit = request.context > 0 ? request.context : std::min(needed, entry ? entry->context : needed);
  auto decoder = pipeline->model().decoder(limit);
  if (!decoder) return decoder.error();
  request.generation.eos = toolkit::ending_tokens(pipeline->bundle());
  const auto generated = request.tokens.empty() ? stream_text(*pipeline, **decoder, *prompt, request.generation)
                                                : print_tokens(**decoder, *prompt, request.generation);
  if (!generated) return generated.error();
  std::cerr << generated->finish << " after " << generated->tokens.size() << " tokens; ran on "
            << pipeline->model().ran_on() << "\n";
  return std::nullopt;
}

}  // namespace

int main(int count, char** arguments) {
  const auto request = read_request(count, arguments);
  if (!request) {
    std::cerr << "error: " << request.error().message << "\n" << kUsage;
    return kCalledWrongly;
  }
  const auto failure = run(*request);
  return failure ? report(*failure) : kPassed;
}
