#include "memory.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <sys/mman.h>

#include <cstdlib>
#include <deque>
#include <mutex>

namespace fastvae {
namespace {

constexpr size_t kPage = size_t{2} << 20;  // a huge page: one fault instead of 512
constexpr size_t kIdleBlocks = 8;

// Whole huge pages.
struct Block {
  void* data;
  size_t size;
};

class RecyclingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const size_t size = (bytes + kPage - 1) / kPage * kPage;
    void* data = take(size);
    if (data == nullptr) data = fresh(size);
    c10::profiledCPUMemoryReporter().New(data, size);
    return {data, new Block{data, size}, &release, c10::Device(c10::DeviceType::CPU)};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static void* fresh(size_t size) {
    void* data = nullptr;
    TORCH_CHECK_WITH(OutOfMemoryError, posix_memalign(&data, kPage, size) == 0,
                     "fastvae: out of memory, tried to allocate ", size, " bytes");
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
      idle_.erase(block);
      return data;
    }
    return nullptr;
  }

  void give(const Block& block) {
#ifdef MADV_FREE
    madvise(block.data, block.size, MADV_FREE);
#endif
    const std::lock_guard lock(mutex_);
    idle_.push_front(block);
    if (idle_.size() <= kIdleBlocks) return;
    std::free(idle_.back().data);
    idle_.pop_back();
  }

  static void release(void* context);

  std::mutex mutex_;
  std::deque<Block> idle_;
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
