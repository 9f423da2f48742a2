// Work items on short-lived threads, with a caller that stays able to answer Ctrl-C.
#pragma once

#include <cstdint>
#include <functional>

namespace rlal {

using Interrupted = std::function<bool()>;

// Calls work(thread, item) for every item in [0, items), on `threads` new threads with denormals
// flushed to zero. Meanwhile the calling thread calls interrupted() a few times a second; once it
// says true no further item starts and the function returns false. The first exception that `work`
// throws is thrown here.
bool run_parallel(int threads, int64_t items, const std::function<void(int, int64_t)>& work,
                  const Interrupted& interrupted);

}  // namespace rlal
