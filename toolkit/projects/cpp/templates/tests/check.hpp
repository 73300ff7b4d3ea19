// The least that a test needs: conditions that are told when they do not hold.
#pragma once

#include <cstdio>

inline int failures = 0;

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);      \
      ++failures;                                                               \
    }                                                                           \
  } while (false)

inline int done() { return failures == 0 ? 0 : 1; }
