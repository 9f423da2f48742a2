// Checks of what the CUDA code does on the host, and of the emulator, which must find the mistakes
// that it is there to find: each check runs a kernel that is right, or one with one mistake, and
// looks at what comes of it.
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/placement.h"
#include "cuda/plan.h"
#include "cuda/ptx.cuh"

namespace rlal::cuda {
namespace {

constexpr int kThreads = 64;

void run(const std::function<void()>& kernel, int threads = kThreads, unsigned blocks = 1) {
  emulator::run({{blocks, 1, 1}, threads, 4096}, kernel);
}

// The message of the error that a kernel must end in.
std::string failure(const std::function<void()>& kernel) {
  try {
    run(kernel);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

int thread() { return static_cast<int>(threadIdx.x); }

bool barriers_order_what_threads_write() {
  std::vector<float> seen(kThreads);
  run([&] {
    auto* shared = reinterpret_cast<float*>(shared_memory());
    shared[thread()] = static_cast<float>(thread());
    __syncthreads();
    seen[thread()] = shared[kThreads - 1 - thread()];
  });
  for (int t = 0; t < kThreads; ++t)
    if (seen[t] != static_cast<float>(kThreads - 1 - t)) return false;
  return true;
}

bool a_missing_barrier_shows() {
  std::vector<float> seen(kThreads);
  run([&] {
    auto* shared = reinterpret_cast<float*>(shared_memory());
    shared[thread()] = 1;
    seen[thread()] = shared[kThreads - 1 - thread()];  // of the other warp
  });
  for (const float value : seen)
    if (std::isnan(value)) return true;
  return false;
}

bool each_block_starts_with_poison() {
  bool clean = true;
  run(
      [&] {
        auto* shared = reinterpret_cast<float*>(shared_memory());
        clean = clean && std::isnan(shared[thread()]);
        __syncthreads();
        shared[thread()] = 1;
      },
      kThreads, 3);
  return clean;
}

bool copies_arrive_at_their_wait_alone() {
  alignas(16) static unsigned char from[3][16];
  for (int i = 0; i < 3; ++i)
    for (unsigned char& byte : from[i]) byte = static_cast<unsigned char>(i + 1);
  std::vector<int> seen;
  run(
      [&] {
        unsigned char* shared = shared_memory() + thread() * 64;
        for (int i = 0; i < 3; ++i) {
          copy_async(shared + i * 16, from[i], i != 1);
          commit_copies();
        }
        const auto look = [&] {
          if (thread() == 5)
            for (int i = 0; i < 3; ++i) seen.push_back(shared[i * 16 + 15]);
        };
        look();
        wait_for_copies<1>();
        look();
        wait_for_copies<0>();
        look();
      },
      32);
  return seen == std::vector<int>{255, 255, 255, 1, 0, 255, 1, 0, 3};
}

bool a_barrier_that_some_miss_is_an_error() {
  const std::string what = failure([] {
    if (thread() < 32) __syncthreads();
  });
  return what.find("others never reach") != std::string::npos;
}

bool a_warp_operation_that_some_miss_is_an_error() {
  const std::string what = failure([] {
    if (thread() % 32 != 3) __shfl_xor_sync(0xffffffff, 1.0f, 1);
  });
  return what.find("__shfl_xor_sync that others never reach") != std::string::npos;
}

bool two_warp_operations_at_once_are_an_error() {
  const std::string what = failure([] {
    uint32_t a[4] = {}, b[2] = {};
    float c[4] = {};
    if (thread() % 32 < 16)
      mma_half(c, a, b);
    else
      mma_tf32(c, a, b);
  });
  return what.find("meet at") != std::string::npos && what.find("tf32") != std::string::npos;
}

bool it_goes_on_after_an_error() {
  failure([] {
    if (thread() == 0) __syncthreads();
  });
  return barriers_order_what_threads_write();
}

bool shuffles_exchange() {
  bool right = true;
  run([&] {
    const int lane = thread() % 32;
    for (int distance = 1; distance < 32; distance *= 2)
      right = right && __shfl_xor_sync(0xffffffff, lane, distance) == (lane ^ distance);
  });
  return right;
}

// A product of whole matrices through load_matrix and the fragments' layout as the PTX ISA has it.
template <typename Encode>
bool products(void (*mma)(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]), int bytes,
              const Encode& encode) {
  const int depth = 32 / bytes;
  const auto a_at = [](int row, int k) { return static_cast<float>((row * 7 + k * 3) % 11 - 5); };
  const auto b_at = [](int k, int n) { return static_cast<float>((k * 5 + n * 2) % 7 - 3); };
  bool right = true;
  run(
      [&] {
        const int lane = thread();
        unsigned char* shared = shared_memory();
        if (lane == 0)
          for (int row = 0; row < 16; ++row)
            for (int k = 0; k < depth; ++k) encode(shared + row * 32 + k * bytes, a_at(row, k));
        __syncthreads();
        uint32_t a[4], b[2] = {};
        load_matrix(a, shared + lane % 16 * 32 + lane / 16 * 16);
        for (int word = 0; word < 2; ++word)
          for (int i = 0; i < 4 / bytes; ++i)
            encode(reinterpret_cast<unsigned char*>(&b[word]) + i * bytes,
                   b_at(word * depth / 2 + lane % 4 * (4 / bytes) + i, lane / 4));
        float c[4] = {1, 1, 1, 1};
        mma(c, a, b);
        for (int i = 0; i < 4; ++i) {
          const int row = lane / 4 + i / 2 * 8, n = lane % 4 * 2 + i % 2;
          float sum = 1;
          for (int k = 0; k < depth; ++k) sum += a_at(row, k) * b_at(k, n);
          right = right && c[i] == sum;
        }
      },
      32);
  return right;
}

template <uint16_t (*BITS)(float)>
void encode_16(unsigned char* to, float value) {
  const uint16_t bits = BITS(value);
  std::memcpy(to, &bits, 2);
}

bool products_of_every_precision() {
  return products(mma_half, 2, encode_16<half_bits>) &&
         products(mma_bfloat, 2, encode_16<bfloat_bits>) &&
         products(mma_tf32, 4, [](unsigned char* to, float value) { std::memcpy(to, &value, 4); });
}

bool numbers_are_rounded_to_nearest() {
  return half_value(half_bits(1.0f + 1.0f / 2048)) == 1.0f &&
         half_value(half_bits(1.0f + 3.0f / 2048)) == 1.0f + 2.0f / 1024 &&
         bfloat_value(bfloat_bits(1.0f + 1.0f / 256)) == 1.0f &&
         bfloat_value(bfloat_bits(1.0f + 3.0f / 256)) == 1.0f + 2.0f / 128 &&
         std::isnan(bfloat_value(bfloat_bits(NAN))) &&
         tf32_rounded(1.0f + 1.0f / 2048) == 1.0f + 1.0f / 1024 &&
         tf32_rounded(1.0f + 1.0f / 4096) == 1.0f;
}

bool nothing_is_placed_upon_another() {
  std::minstd_rand random(1);  // NOLINT(bugprone-random-generator-seed): the same in each run
  for (int round = 0; round < 200; ++round) {
    std::vector<Span> spans;
    int64_t sum = 0;
    for (int i = 0; i < 1 + round % 40; ++i) {
      const int first = static_cast<int>(random() % 50);
      spans.push_back({static_cast<int64_t>(1 + random() % 9) * 16, first,
                       first + static_cast<int>(random() % 10)});
      sum += spans.back().bytes;
    }
    const int64_t bytes = place_spans(&spans);
    if (bytes > sum) return false;
    for (const Span& a : spans)
      for (const Span& b : spans) {
        const bool together = a.first <= b.last && b.first <= a.last;
        const bool apart = a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
        if (a.offset < 0 || a.offset + a.bytes > bytes || (&a != &b && together && !apart))
          return false;
      }
  }
  std::vector<Span> chain{{16, 0, 1}, {32, 1, 2}, {32, 2, 3}, {16, 3, 4}};
  return place_spans(&chain) == 64;  // two at a time
}

bool divisions_are_exact() {
  for (int by = 1; by < 4000; by = by < 70 ? by + 1 : by + 131) {
    const Divisor d = divisor(by);
    for (const int64_t n :
         {int64_t{0}, int64_t{1}, int64_t{by} - 1, int64_t{by}, int64_t{by} * 77 - 1,
          int64_t{by} * 77, int64_t{0x7fffffff}, int64_t{0x7fffffff} / by * by - 1})
      if (static_cast<int64_t>(static_cast<uint64_t>(n) * d.multiplier >> d.shift) != n / by)
        return false;
  }
  return true;
}

struct Check {
  const char* name;
  bool (*holds)();
};

#define CHECK(name) \
  Check { #name, name }

int run_all() {
  const Check checks[] = {CHECK(barriers_order_what_threads_write),
                          CHECK(a_missing_barrier_shows),
                          CHECK(each_block_starts_with_poison),
                          CHECK(copies_arrive_at_their_wait_alone),
                          CHECK(a_barrier_that_some_miss_is_an_error),
                          CHECK(a_warp_operation_that_some_miss_is_an_error),
                          CHECK(two_warp_operations_at_once_are_an_error),
                          CHECK(it_goes_on_after_an_error),
                          CHECK(shuffles_exchange),
                          CHECK(products_of_every_precision),
                          CHECK(numbers_are_rounded_to_nearest),
                          CHECK(nothing_is_placed_upon_another),
                          CHECK(divisions_are_exact)};
  int failed = 0;
  for (const Check& check : checks)
    if (!check.holds()) {
      std::printf("cuda: %s does not hold\n", check.name);
      ++failed;
    }
  if (failed == 0) std::printf("cuda: %zu checks\n", std::size(checks));
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace rlal::cuda

int main() { return rlal::cuda::run_all(); }
