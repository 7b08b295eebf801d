// Memory of large results.
#pragma once

#include <c10/core/Allocator.h>

namespace fastvae {

// malloc keeps smaller blocks for their next user; larger ones (glibc: 32 MiB) it maps and unmaps
// each time.
constexpr size_t kLargeResult = size_t{32} << 20;

// Hands the memory of large results that are gone to the next ones of their size. A training step
// frees and asks for the same megabytes again and again; fresh from the system they come as zeroed
// pages, one fault each, which takes longer than these formulas over them. What lies idle is a few
// blocks, and the system's to take whenever it needs memory (MADV_FREE).
c10::Allocator* recycling_allocator();

}  // namespace fastvae
