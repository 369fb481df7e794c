// cp.async: what a copy brings is there once its thread has waited for its group, and not before.
#pragma once

#include "emulator/block.h"

namespace resflow::cuda::emulator {

void copy_async_16(void* shared, const void* from, int bytes, const Site& site);
void copy_async_commit();
void copy_async_wait(int left);

}  // namespace resflow::cuda::emulator
