#include "tensor/core/stretch.h"

#include <algorithm>
#include <iterator>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace lowbit {

#if defined(__linux__)

Stretch::Stretch() {
  const size_t bytes = 2 * size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGESIZE));
  void* const p =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return;
  base_ = static_cast<char*>(p);
  free_[0] = bytes;
}

void Stretch::trim() {
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  for (const auto& [at, bytes] : free_) {
    const size_t begin = (at + page - 1) / page * page, end = std::min(at + bytes, top_) / page * page;
    if (begin < end) madvise(base_ + begin, end - begin, MADV_DONTNEED);
  }
  top_ = used_.empty() ? 0 : used_.rbegin()->first + used_.rbegin()->second;
}

#else

Stretch::Stretch() = default;
void Stretch::trim() {}

#endif

void* Stretch::take(size_t bytes) {
  bytes = (bytes + 63) & ~size_t(63);
  const auto fits = [bytes](const auto& span) { return span.second >= bytes; };
  const auto it = std::find_if(free_.begin(), free_.end(), fits);
  if (it == free_.end()) return nullptr;
  const auto [at, size] = *it;
  free_.erase(it);
  if (size > bytes) free_[at + bytes] = size - bytes;
  used_[at] = bytes;
  bytes_ += bytes;
  top_ = std::max(top_, at + bytes);
  return base_ + at;
}

bool Stretch::give(void* p) {
  const auto block = base_ ? used_.find(size_t(static_cast<char*>(p) - base_)) : used_.end();
  if (block == used_.end()) return false;
  auto [at, bytes] = *block;
  used_.erase(block);
  bytes_ -= bytes;
  auto next = free_.lower_bound(at);
  if (next != free_.end() && next->first == at + bytes) {
    bytes += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin())
    if (const auto before = std::prev(next); before->first + before->second == at) {
      before->second += bytes;
      return true;
    }
  free_[at] = bytes;
  return true;
}

}  // namespace lowbit
