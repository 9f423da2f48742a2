#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace rlal {
namespace {

// The thread is ours, so nothing needs restoring.
void flush_denormals() {
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);  // FTZ and DAZ
#elif defined(__aarch64__)
  uint64_t control = 0;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  __asm__ volatile("msr fpcr, %0" : : "r"(control | (1 << 24)));  // FZ
#endif
}

}  // namespace

// Threads live for one call: starting them costs microseconds against milliseconds of work, and a
// pool would not survive the fork of a data loader.
bool run_parallel(int threads, int64_t items, const std::function<void(int, int64_t)>& work,
                  const Interrupted& interrupted) {
  if (items <= 0) return true;
  const int count = static_cast<int>(std::clamp<int64_t>(threads, 1, items));
  std::atomic<int64_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::condition_variable ended;
  int running = count;
  std::exception_ptr failure;

  const auto body = [&](int thread) {
    flush_denormals();
    try {
      for (int64_t item; !stop && (item = next++) < items;) work(thread, item);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
      stop = true;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    --running;
    ended.notify_all();
  };

  std::vector<std::thread> workers;
  workers.reserve(count);
  try {
    for (int thread = 0; thread < count; ++thread) workers.emplace_back(body, thread);
  } catch (
      const std::system_error&) {  // the system gives no more threads: go on with those there are
    const std::lock_guard<std::mutex> lock(mutex);
    running -= count - static_cast<int>(workers.size());
    if (workers.empty()) throw;
  }
  bool cancelled = false;
  {
    std::unique_lock<std::mutex> lock(mutex);
    while (!ended.wait_for(lock, std::chrono::milliseconds(50), [&] { return running == 0; })) {
      if (cancelled) continue;
      lock.unlock();  // interrupted() may wait for Python's lock
      if (interrupted()) stop = cancelled = true;
      lock.lock();
    }
  }
  for (std::thread& worker : workers) worker.join();
  if (failure) std::rethrow_exception(failure);
  return !cancelled;
}

}  // namespace rlal
