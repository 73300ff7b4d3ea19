// A program's arguments: `--name value` options, `--name` switches, and the rest in order.
#pragma once

#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "result.hpp"

struct Options {
  std::map<std::string, std::string> named;
  std::vector<std::string> rest;

  bool has(const std::string& name) const { return named.count(name) > 0; }
  std::string text(const std::string& name, const std::string& otherwise = "") const {
    const auto found = named.find(name);
    return found == named.end() ? otherwise : found->second;
  }
};

/// Refuses names that are neither in `valued` nor in `switches`, and a value that is missing.
inline toolkit::Result<Options> read_options(int count, char** arguments, const std::set<std::string>& valued,
                                             const std::set<std::string>& switches) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    if (switches.count(argument) > 0) {
      options.named[argument] = "";
    } else if (valued.count(argument) > 0) {
      if (++i == count) return toolkit::Error{argument + " needs a value", ""};
      options.named[argument] = arguments[i];
    } else if (argument.rfind("--", 0) == 0) {
      return toolkit::Error{"there is no option " + argument, ""};
    } else {
      options.rest.push_back(argument);
    }
  }
  return options;
}

/// The option as a number from `least` to `most`.
inline toolkit::Result<double> number_option(const Options& options, const std::string& name, double otherwise,
                                             double least, double most) {
  if (!options.has(name)) return otherwise;
  const auto text = options.text(name);
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value >= least && value <= most)) {
    return toolkit::Error{name + " " + text + " is outside its range", ""};
  }
  return value;
}
