// Threads that help a caller through its tiles.
//
// A serving process pauses between calls and shares its cores, so the pool never makes a caller wait for a
// thread that has not begun: the caller takes every tile nobody has started, and at the end waits only for tiles
// that are being worked on. Workers sleep between calls.
#pragma once

#include <cstdint>

namespace resflow::cpu {

// Calls work(context, index) once for each index of 0..count-1, on the calling thread and up to threads - 1
// others, in no particular order; returns when all are done. Any number of threads may call at once. `work`
// must not throw.
void parallel_for(int64_t count, int64_t threads, void (*work)(void* context, int64_t index), void* context);

// Cores this process may use.
int64_t usable_cores();

}  // namespace resflow::cpu
