// Memory of large results.
#pragma once

#include <c10/core/Allocator.h>

namespace fastvae {

// Results of this size and more use the recycling allocator. malloc keeps smaller blocks for their
// next user. glibc returns larger ones to the system, page by page: from 128 KiB on at first, later
// up to 32 MiB, and whenever the end of the heap is free.
constexpr size_t kLargeResult = size_t{1} << 20;

// Reuses the memory of freed large results for new ones of the same size. A training step frees and
// allocates the same megabytes again and again; fresh memory from the system comes as zeroed pages,
// with one fault each, which takes longer than computing the formulas over them.
//
// At most 256 MiB stay idle in blocks of less than 32 MiB, and 16 larger blocks, which the system
// can reclaim whenever it needs memory (MADV_FREE). A block that is not reused while thousands of
// others are freed is returned to the system.
c10::Allocator* recycling_allocator();

}  // namespace fastvae
