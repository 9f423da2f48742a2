// The few services of the CUDA runtime that the host code uses, and the same from the emulator. The
// runtime is linked statically, so that one build can be imported on machines without a GPU.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace rlal::cuda {

// What a call of the runtime returned, or why there is no device: one line for the user.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

using Stream = void*;  // a cudaStream_t

// Devices that can be used; throws Error where the driver is missing or too old.
int device_count();
bool emulated();

struct DeviceProperties {
  std::string name;
  int64_t shared_per_block, shared_per_multiprocessor;
};
DeviceProperties properties(int device);

// Makes `device` the current one for as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = -1;
};

void set_zero(void* memory, int64_t bytes, Stream stream);

// What `record` launches on the stream it is given, to be launched again as a whole.
class Graph {
 public:
  Graph(Stream stream, const std::function<void(Stream)>& record);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void launch(Stream stream) const;

 private:
  struct Recorded;
  std::unique_ptr<Recorded> recorded_;
};

// Streams that begin after what `stream` holds; `stream` goes on after what they hold. Memory of
// `stream` may be used on them until join().
class Fork {
 public:
  Fork(Stream stream, int count);
  ~Fork();  // joins
  Fork(const Fork&) = delete;
  Fork& operator=(const Fork&) = delete;
  Stream operator[](int i) const { return streams_[i]; }

 private:
  void join();

  Stream origin_;
  std::vector<Stream> streams_;
};

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

struct Launch {
  const char* kernel;  // its name, for messages
  Grid grid;
  int threads;
  int64_t shared_bytes;
  Stream stream;
};

std::string described(const Launch& launch);

#ifdef RLAL_FAST_CUDA_EMULATED

void launch_emulated(const Launch& launch, std::function<void()> kernel);

template <typename... Parameters>
void launch(const Launch& how, void (*kernel)(Parameters...),
            std::common_type_t<Parameters>... arguments) {
  launch_emulated(how, [=] { kernel(arguments...); });
}

#else

// Throws Error, naming the kernel and its sizes.
void launch_on_device(const Launch& launch, const void* kernel, void** arguments);

template <typename... Parameters>
void launch(const Launch& how, void (*kernel)(Parameters...),
            std::common_type_t<Parameters>... arguments) {
  void* pointers[] = {&arguments...};
  launch_on_device(how, reinterpret_cast<const void*>(kernel), pointers);
}

#endif

}  // namespace rlal::cuda
