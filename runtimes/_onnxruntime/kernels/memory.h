// Memory of the kernels: aligned room, room that a thread keeps, pages that are let go.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace toolkit {

constexpr size_t kLine = 64;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Bytes = std::unique_ptr<uint8_t, Free>;

inline Bytes allocate(size_t count) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kLine, std::max(count, kLine)) != 0) throw std::bad_alloc();
  return Bytes(static_cast<uint8_t*>(memory));
}

// Memory of packed weights, which is read from one end to the other in every run: finding its pages anew, 4 kB at a
// time, takes a fiftieth of a Linear's time. So weights lie behind each other in chunks of large pages, where the system
// gives them; a chunk goes with the last of its weights, and what is not used of it takes no memory.
using Packed = std::shared_ptr<uint8_t>;

class Chunk {
 public:
  explicit Chunk(size_t count) : size_(std::max(count, kLeast)) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kLargePage, size_) != 0) throw std::bad_alloc();
    memory_.reset(static_cast<uint8_t*>(memory));
#if defined(__linux__)
    madvise(memory, size_, MADV_HUGEPAGE);  // where there are none, these are pages as any
#endif
  }
  bool holds(size_t count) const { return size_ - used_ >= count; }
  uint8_t* take(size_t count) { return memory_.get() + std::exchange(used_, used_ + count); }

 private:
  static constexpr size_t kLargePage = size_t{1} << 21, kLeast = 16 * kLargePage;
  size_t size_, used_ = 0;
  Bytes memory_;
};

inline Packed room_for_weights(size_t count) {
  static std::mutex one_at_a_time;
  static std::weak_ptr<Chunk> latest;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const size_t room = (count + kLine - 1) / kLine * kLine;
  std::shared_ptr<Chunk> chunk = latest.lock();
  if (chunk == nullptr || !chunk->holds(room)) latest = chunk = std::make_shared<Chunk>(room);
  return Packed(chunk, chunk->take(room));
}

// Room that each thread which runs nodes keeps for the next; every operator uses it within one node only.
inline uint8_t* scratch(size_t bytes) {
  static thread_local Bytes held;
  static thread_local size_t size = 0;
  if (bytes > size) {
    held = allocate(bytes);
    size = bytes;
  }
  return held.get();
}
struct Range {
  uintptr_t begin, end;
};

// Lets go of the pages of constants that were packed, where they are still those of a mapped file: such pages come back
// from the file should anyone read them again. Any other page is left alone; there this call would destroy it.
inline void give_back(const Range& range) {
#if defined(__linux__)
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = (range.begin + page - 1) / page, last = range.end / page;
  const int file = first < last ? open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  constexpr uint64_t of_a_file = uint64_t{1} << 61, present = uint64_t{1} << 63;
  std::vector<uint64_t> entries(last - first);
  const ssize_t wanted = static_cast<ssize_t>(entries.size() * sizeof(uint64_t));
  const bool complete = pread(file, entries.data(), static_cast<size_t>(wanted), static_cast<off_t>(first * 8)) == wanted;
  close(file);
  if (!complete) return;
  for (size_t i = 0, run = 0; i <= entries.size(); ++i) {
    if (i < entries.size() && (entries[i] & of_a_file) && (entries[i] & present)) continue;
    if (run < i) madvise(reinterpret_cast<void*>((first + run) * page), (i - run) * page, MADV_DONTNEED);
    run = i + 1;
  }
#else
  (void)range;
#endif
}
}  // namespace toolkit
