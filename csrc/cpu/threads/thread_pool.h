// A pool of threads that help a caller with its tiles.
//
// A serving process pauses between calls and shares its cores, so the pool never makes a caller wait for a thread that
// has not begun: the caller takes every tile that no thread has started, and at the end waits only for tiles in
// progress. Workers sleep between calls.
#pragma once

#include <cstdint>

namespace resflow::cpu {

// Calls work(context, index) once for each index from 0 to count - 1, on the calling thread and up to threads - 1
// others, in no particular order; returns when all are done. Any number of threads may call it at once. `work` must not
// throw.
void parallel_for(int64_t count, int64_t threads, void (*work)(void* context, int64_t index), void* context);

template <class Work>
void run_parallel(int64_t count, int64_t threads, Work work) {
  parallel_for(count, threads, [](void* context, int64_t index) { (*static_cast<Work*>(context))(index); }, &work);
}

// The number of awake workers, at most `wanted`, which start new work at once. After a pause there are none: waking one
// takes longer than a small batch. If calls follow each other closely, some are woken for the next call.
int64_t awake_workers(int64_t wanted);

// The number of cores that the calling thread may use.
int64_t usable_cores();

}  // namespace resflow::cpu
