#include "profile_choice.hpp"

#include "check.hpp"

int main() {
  const toolkit::Profile prefill{{"ids", {{1, 1}, {4, 512}}}}, decode{{"ids", {{1, 1}, {4, 1}}}};
  const std::vector<toolkit::Profile> profiles{prefill, decode};
  CHECK(*toolkit::choose_profile(profiles, {{"ids", {2, 7}}}) == 0);
  CHECK(*toolkit::choose_profile(profiles, {{"ids", {2, 1}}}) == 1);
  const auto refused = toolkit::choose_profile(profiles, {{"ids", {5, 1}}});
  CHECK(!refused && refused.error().message ==
                        "input 'ids' is [5, 1]; the engine takes [1, 1] to [4, 512] or [1, 1] to [4, 1]");
  CHECK(!toolkit::choose_profile(profiles, {{"ids", {5}}}));
  CHECK(!toolkit::choose_profile({}, {{"ids", {5}}}));
  return done();
}
