// Memory of large results.
#pragma once

#include <c10/core/Allocator.h>

namespace fastvae {

// Smaller ones malloc keeps for their next user. Larger ones glibc gives back, to the system page
// by page: at 128 KiB first, later up to 32 MiB, and whenever the end of the heap is free.
constexpr size_t kLargeResult = size_t{1} << 20;

// Hands the memory of large results that are gone to the next ones of their size. A training step
// frees and asks for the same megabytes again and again; fresh from the system they come as zeroed
// pages, one fault each, which takes longer than these formulas over them.
//
// What lies idle is at most 256 MiB in blocks of less than 32 MiB, and 16 larger ones, which are
// the system's to take whenever it needs memory (MADV_FREE). A block that nobody has asked for
// while thousands were given back is given back too.
c10::Allocator* recycling_allocator();

}  // namespace fastvae
