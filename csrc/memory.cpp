#include "memory.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <sys/mman.h>

#include <deque>
#include <mutex>

namespace fastvae {
namespace {

constexpr size_t kPages = size_t{64} << 10;    // whole pages of any system
constexpr size_t kHugePage = size_t{2} << 20;  // one fault instead of 512
constexpr size_t kHuge = size_t{32} << 20;
constexpr size_t kIdleBytes = size_t{256} << 20, kIdleHuge = 16;
constexpr uint64_t kForgotten = 4096;

// Huge pages as far as they fit, and small ones for the rest.
struct Block {
  void* data;
  size_t size;
  uint64_t given = 0;  // its number among those that were given back

  bool is_huge() const { return size >= kHuge; }
};

class RecyclingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const size_t size = (bytes + kPages - 1) / kPages * kPages;
    void* data = take(size);
    if (data == nullptr) data = fresh(size);
    c10::profiledCPUMemoryReporter().New(data, size);
    return {data, new Block{data, size}, &release, c10::Device(c10::DeviceType::CPU)};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  // Mapped by itself: malloc would keep what is freed amid its heap.
  static void* fresh(size_t size) {
    char* data = static_cast<char*>(mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    TORCH_CHECK_WITH(OutOfMemoryError, data != MAP_FAILED,
                     "fastvae: out of memory, tried to allocate ", size, " bytes");
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(data) % kHugePage) % kHugePage;
    if (before > 0) munmap(data, before);
    data += before;
    munmap(data + size, kHugePage - before);
#ifdef MADV_HUGEPAGE
    madvise(data, size, MADV_HUGEPAGE);  // a wish: may be refused
#endif
    return data;
  }

  // An idle block, the last one freed first, or null.
  void* take(size_t size) {
    const std::lock_guard lock(mutex_);
    for (auto block = idle_.begin(); block != idle_.end(); ++block) {
      if (block->size != size) continue;
      void* data = block->data;
      count(*block, -1);
      idle_.erase(block);
      return data;
    }
    return nullptr;
  }

  void give(Block block) {
#ifdef MADV_FREE
    if (block.is_huge()) madvise(block.data, block.size, MADV_FREE);
#endif
    const std::lock_guard lock(mutex_);
    block.given = ++given_;
    idle_.push_front(block);
    count(block, 1);
    // From the one that was given back first.
    for (auto old = idle_.end(); old != idle_.begin();) {
      --old;
      const bool is_one_too_many = old->is_huge() ? huge_ > kIdleHuge : bytes_ > kIdleBytes;
      if (!is_one_too_many && given_ - old->given < kForgotten) continue;
      munmap(old->data, old->size);
      count(*old, -1);
      old = idle_.erase(old);
    }
  }

  void count(const Block& block, int sign) {
    if (block.is_huge())
      huge_ += sign;
    else
      bytes_ += sign * static_cast<int64_t>(block.size);
  }

  static void release(void* context);

  std::mutex mutex_;
  std::deque<Block> idle_;
  // Of the idle blocks: bytes of those that are not huge, and how many are.
  size_t bytes_ = 0, huge_ = 0;
  uint64_t given_ = 0;
};

RecyclingAllocator& instance() {
  // Never destroyed: tensors may outlive every static object.
  static auto* allocator = new RecyclingAllocator;
  return *allocator;
}

void RecyclingAllocator::release(void* context) {
  auto* block = static_cast<Block*>(context);
  c10::profiledCPUMemoryReporter().Delete(block->data);
  instance().give(*block);
  delete block;
}

}  // namespace

c10::Allocator* recycling_allocator() { return &instance(); }

}  // namespace fastvae
