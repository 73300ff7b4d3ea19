#include "profile_choice.hpp"

namespace toolkit {

namespace {

bool holds(const ShapeRange& range, const Shape& shape) {
  if (shape.size() != range.least.size()) return false;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] < range.least[i] || shape[i] > range.most[i]) return false;
  }
  return true;
}

/// The first input whose shape the profile does not hold; empty where it holds all.
std::string outside(const Profile& profile, const std::map<std::string, Shape>& shapes) {
  for (const auto& [name, shape] : shapes) {
    const auto range = profile.find(name);
    if (range == profile.end() || !holds(range->second, shape)) return name;
  }
  return "";
}

int fixed_sizes(const Profile& profile) {
  int count = 0;
  for (const auto& [name, range] : profile) {
    for (std::size_t i = 0; i < range.least.size(); ++i) count += range.least[i] == range.most[i];
  }
  return count;
}

}  // namespace

Result<int> choose_profile(const std::vector<Profile>& profiles, const std::map<std::string, Shape>& shapes) {
  int best = -1, most = -1;
  std::string missed;
  for (std::size_t i = 0; i < profiles.size(); ++i) {
    const auto name = outside(profiles[i], shapes);
    if (!name.empty()) {
      missed = name;
    } else if (fixed_sizes(profiles[i]) > most) {
      best = static_cast<int>(i), most = fixed_sizes(profiles[i]);
    }
  }
  if (best >= 0) return best;
  if (missed.empty()) return Error{"the engine has no optimization profile", ""};
  std::string allowed;
  for (const auto& profile : profiles) {
    const auto range = profile.find(missed);
    if (range == profile.end()) return Error{"the engine takes no '" + missed + "'", ""};
    allowed += (allowed.empty() ? "" : " or ") + spelled(range->second.least) + " to " + spelled(range->second.most);
  }
  return Error{"input '" + missed + "' is " + spelled(shapes.at(missed)) + "; the engine takes " + allowed,
               "Split the input, or export again with a larger --dim."};
}

}  // namespace toolkit
