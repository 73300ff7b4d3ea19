// Proves on this machine that a bundle answers as it did where it was made. Exit code 0, 1, or 2 if called wrongly.
#include "selftest.hpp"

#include "report.hpp"

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: selftest BUNDLE\n";
    return kCalledWrongly;
  }
  const auto failure = toolkit::run_selftest(arguments[1], std::cout);
  if (!failure) {
    std::cout << "selftest passed" << std::endl;
    return kPassed;
  }
  std::cout << "selftest FAILED: " << failure->message << std::endl;
  return report(*failure);
}
