#include "cuda/emulator/emulator.h"

#include <csetjmp>
#include <deque>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <ucontext.h>

namespace rlal::emulator {
namespace {

constexpr int64_t kStackBytes = 256 << 10;
constexpr unsigned char kPoison = 0xff;

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

enum class State { ready, at_barrier, at_warp_operation, ended };

struct Fiber {
  ucontext_t start{};
  jmp_buf resume{};
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
  bool started = false;
  State state = State::ready;
  int thread = 0;
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> committed_copies;
};

struct Warp {
  const char* operation = nullptr;
  int arrived = 0;
  std::vector<unsigned char> in, out;
};

// One block at a time, on the thread that calls run().
class Machine {
 public:
  void run(const Launch& launch, const std::function<void()>& kernel) {
    if (launch.threads <= 0 || launch.threads % kWarp != 0 || launch.threads > 1024)
      throw std::runtime_error("a block of " + std::to_string(launch.threads) + " threads");
    launch_ = launch;
    kernel_ = kernel;
    warps_.resize(launch.threads / kWarp);
    while (fibers_.size() < static_cast<size_t>(launch.threads))
      fibers_.push_back(std::make_unique<Fiber>());
    shared_.resize(launch.shared_bytes + kAlignment);
    const Dim3 grid = launch.grid;
    std::vector<Dim3> blocks;
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) blocks.push_back({x, y, z});
    for (size_t i = blocks.size(); i > 1; --i) std::swap(blocks[i - 1], blocks[below(i)]);
    for (const Dim3& block : blocks) run_block(block);
  }

  const Launch& launch() const { return launch_; }
  const Dim3& block() const { return block_; }
  int thread() const { return current_->thread; }
  unsigned char* shared() {
    const auto address = reinterpret_cast<uintptr_t>(shared_.data());
    return shared_.data() + (kAlignment - address % kAlignment) % kAlignment;
  }

  void barrier() { wait(State::at_barrier); }

  void copy(const Copy& copy) { current_->open_copies.push_back(copy); }

  void commit() {
    current_->committed_copies.push_back(std::move(current_->open_copies));
    current_->open_copies.clear();
  }

  void deliver(size_t in_flight) {
    std::deque<std::vector<Copy>>& groups = current_->committed_copies;
    for (; groups.size() > in_flight; groups.pop_front())
      for (const Copy& copy : groups.front()) {
        if (copy.from != nullptr)
          std::memcpy(copy.to, copy.from, copy.bytes);
        else
          std::memset(copy.to, 0, copy.bytes);
      }
  }

  void warp_operation(const char* name, const void* in, int in_bytes, void* out, int out_bytes,
                      Combine combine) {
    Warp& warp = warps_[current_->thread / kWarp];
    const int lane = current_->thread % kWarp;
    if (warp.arrived > 0 && std::strcmp(warp.operation, name) != 0)
      fail(std::string("lanes of one warp meet at ") + warp.operation + " and " + name);
    warp.operation = name;
    warp.in.resize(kWarp * kMostOperandBytes);
    std::memcpy(warp.in.data() + lane * in_bytes, in, in_bytes);
    if (++warp.arrived < kWarp) {
      wait(State::at_warp_operation);
    } else {
      warp.arrived = 0;
      warp.out.resize(kWarp * kMostOperandBytes);
      combine(warp.in.data(), warp.out.data());
      for (int l = 0; l < kWarp; ++l) fibers_[current_->thread - lane + l]->state = State::ready;
    }
    std::memcpy(out, warp.out.data() + lane * out_bytes, out_bytes);
  }

 private:
  static constexpr uintptr_t kAlignment = 128;

  void run_block(const Dim3& block) {
    block_ = block;
    std::memset(shared_.data(), kPoison, shared_.size());
    for (Warp& warp : warps_) warp.arrived = 0;
    for (int t = 0; t < launch_.threads; ++t) {
      Fiber& fiber = *fibers_[t];
      fiber.state = State::ready;
      fiber.thread = t;
      fiber.open_copies.clear();
      fiber.committed_copies.clear();
    }
    while (step()) {
    }
  }

  // Lets one warp run as far as it can; false when the block has ended.
  bool step() {
    std::vector<int> runnable;
    int ended = 0, waiting = 0;
    for (int w = 0; w < static_cast<int>(warps_.size()); ++w) {
      bool any = false;
      for (int t = w * kWarp; t < (w + 1) * kWarp; ++t) {
        any = any || fibers_[t]->state == State::ready;
        ended += fibers_[t]->state == State::ended;
        waiting += fibers_[t]->state == State::at_barrier;
      }
      if (any) runnable.push_back(w);
    }
    if (ended == launch_.threads) return false;
    if (!runnable.empty()) {
      const int first = runnable[below(runnable.size())] * kWarp;
      const int start = static_cast<int>(below(kWarp));
      for (int i = 0; i < kWarp; ++i) {
        Fiber& fiber = *fibers_[first + (start + i) % kWarp];
        if (fiber.state == State::ready) enter(fiber);
      }
      return true;
    }
    if (waiting + ended < launch_.threads || ended > 0)
      fail("the block hangs: some threads wait at a barrier or at " + named_operation() +
           " that others never reach");
    for (int t = 0; t < launch_.threads; ++t) fibers_[t]->state = State::ready;
    return true;
  }

  std::string named_operation() const {
    for (const Warp& warp : warps_)
      if (warp.arrived > 0) return warp.operation;
    return "a warp operation";
  }

  // -- switching: swapcontext asks the system each time, so it only begins a fiber --

  void enter(Fiber& fiber) {
    current_ = &fiber;
    in_fiber_ = true;
    if (_setjmp(scheduler_) == 0) {
      if (fiber.started) _longjmp(fiber.resume, 1);
      fiber.started = true;
      getcontext(&fiber.start);
      fiber.start.uc_stack.ss_sp = fiber.stack.get();
      fiber.start.uc_stack.ss_size = kStackBytes;
      fiber.start.uc_link = nullptr;
      makecontext(&fiber.start, &Machine::run_fiber, 0);
      setcontext(&fiber.start);
    }
    in_fiber_ = false;
    if (!failure_.empty()) {
      const std::string message = std::move(failure_);
      failure_.clear();
      fibers_.clear();  // they stand in the middle of a kernel
      throw std::runtime_error(message);
    }
  }

  static void run_fiber();

  void leave() {
    if (_setjmp(current_->resume) == 0) _longjmp(scheduler_, 1);
  }

  void wait(State state) {
    current_->state = state;
    leave();
  }

  // In the scheduler it throws; in a fiber the scheduler must, as its stack has no one to catch.
  [[noreturn]] void fail(const std::string& message) {
    const std::string whole = "emulated kernel, block (" + std::to_string(block_.x) + ", " +
                              std::to_string(block_.y) + ", " + std::to_string(block_.z) +
                              "): " + message;
    if (in_fiber_) {
      failure_ = whole;
      _longjmp(scheduler_, 1);
    }
    fibers_.clear();
    throw std::runtime_error(whole);
  }

  size_t below(size_t count) { return random_() % count; }

  Launch launch_{};
  std::function<void()> kernel_;
  Dim3 block_{};
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Warp> warps_;
  std::vector<unsigned char> shared_;
  Fiber nobody_;
  Fiber* current_ = &nobody_;
  jmp_buf scheduler_{};
  std::string failure_;
  bool in_fiber_ = false;
  std::minstd_rand random_{1};  // NOLINT(bugprone-random-generator-seed): the same in each run
};

Machine& machine() {
  static thread_local Machine only;
  return only;
}

void Machine::run_fiber() {
  Machine& m = machine();
  for (;;) {  // a fiber outlives its block, to save the next one the start
    m.kernel_();
    m.current_->state = State::ended;
    m.leave();
  }
}

}  // namespace

void run(const Launch& launch, const std::function<void()>& kernel) {
  machine().run(launch, kernel);
}

Dim3 thread_index() { return {static_cast<unsigned>(machine().thread()), 0, 0}; }
Dim3 block_index() { return machine().block(); }
Dim3 block_size() { return {static_cast<unsigned>(machine().launch().threads), 1, 1}; }
Dim3 grid_size() { return machine().launch().grid; }
unsigned char* shared_memory() { return machine().shared(); }
void barrier() { machine().barrier(); }
void copy_async(void* to, const void* from, int bytes) { machine().copy({to, from, bytes}); }
void commit_copies() { machine().commit(); }
void wait_for_copies(int groups_in_flight) { machine().deliver(groups_in_flight); }

void warp_operation(const char* name, const void* in, int in_bytes, void* out, int out_bytes,
                    Combine combine) {
  machine().warp_operation(name, in, in_bytes, out, out_bytes, combine);
}

}  // namespace rlal::emulator
