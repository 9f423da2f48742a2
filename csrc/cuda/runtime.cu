#include "cuda/runtime.h"

#include <cstdlib>

#include "cuda/device.cuh"

namespace rlal::cuda {

std::string described(const Launch& launch) {
  const auto number = [](int64_t value) { return std::to_string(value); };
  return std::string(launch.kernel) + " on " + number(launch.grid.x) + " x " +
         number(launch.grid.y) + " x " + number(launch.grid.z) + " blocks of " +
         number(launch.threads) + " threads with " + number(launch.shared_bytes) +
         " bytes of shared memory";
}

#ifndef RLAL_FAST_CUDA_EMULATED

namespace {

void check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // what is no longer pending does not fail the next call
  throw Error("CUDA: " + what + " failed: " + cudaGetErrorString(status) + " (" +
              cudaGetErrorName(status) + ")");
}

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

cudaStream_t stream_of(Stream stream) { return static_cast<cudaStream_t>(stream); }

// With RLAL_FAST_CUDA_SYNC in the environment an error shows at the launch that made it, and for a
// recorded one at the launch of its graph.
cudaError_t finished(cudaStream_t stream) {
  static const bool asked = std::getenv("RLAL_FAST_CUDA_SYNC") != nullptr;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  if (!asked) return cudaSuccess;
  const cudaError_t status = cudaStreamIsCapturing(stream, &capture);
  if (status != cudaSuccess || capture != cudaStreamCaptureStatusNone) return status;
  return cudaStreamSynchronize(stream);
}

}  // namespace

bool emulated() { return false; }

int device_count() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    cudaGetLastError();
    if (driver == 0) throw Error("there is no NVIDIA driver on this machine");
    throw Error("the NVIDIA driver supports CUDA " + version(driver) +
                " and rlal_fast was built with CUDA " + version(runtime) +
                ": update the driver, or build rlal_fast with an older CUDA");
  }
  if (status == cudaErrorNoDevice) {
    cudaGetLastError();
    return 0;
  }
  check(status, "counting the devices");
  return count;
}

DeviceProperties properties(int device) {
  cudaDeviceProp found{};
  check(cudaGetDeviceProperties(&found, device), "asking device " + std::to_string(device));
  return {found.name, static_cast<int64_t>(found.sharedMemPerBlockOptin),
          static_cast<int64_t>(found.sharedMemPerMultiprocessor)};
}

DeviceGuard::DeviceGuard(int device) {
  check(cudaGetDevice(&before_), "asking for the current device");
  check(cudaSetDevice(device), "using device " + std::to_string(device));
}

DeviceGuard::~DeviceGuard() { cudaSetDevice(before_); }

void set_zero(void* memory, int64_t bytes, Stream stream) {
  check(cudaMemsetAsync(memory, 0, bytes, stream_of(stream)), "clearing memory");
}

struct Graph::Recorded {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;

  ~Recorded() {
    if (executable != nullptr) cudaGraphExecDestroy(executable);
    if (graph != nullptr) cudaGraphDestroy(graph);
  }
};

Graph::Graph(Stream stream, const std::function<void(Stream)>& record)
    : recorded_(std::make_unique<Recorded>()) {
  check(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal),
        "recording a graph");
  try {
    record(stream);
  } catch (...) {
    cudaStreamEndCapture(stream_of(stream), &recorded_->graph);
    cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(stream_of(stream), &recorded_->graph), "recording a graph");
  check(cudaGraphInstantiate(&recorded_->executable, recorded_->graph, 0), "making a graph");
}

Graph::~Graph() = default;

void Graph::launch(Stream stream) const {
  check(cudaGraphLaunch(recorded_->executable, stream_of(stream)), "launching a graph");
  check(finished(stream_of(stream)), "running a graph");
}

namespace {

// Work of `after` waits for what `before` holds now.
void order(cudaStream_t before, cudaStream_t after) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  const cudaError_t recorded = cudaEventRecord(event, before);
  const cudaError_t waited =
      recorded == cudaSuccess ? cudaStreamWaitEvent(after, event, 0) : recorded;
  cudaEventDestroy(event);  // once it has happened
  check(waited, "ordering two streams");
}

}  // namespace

Fork::Fork(Stream stream, int count) : origin_(stream) {
  try {
    for (int i = 0; i < count; ++i) {
      cudaStream_t made = nullptr;
      check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "making a stream");
      streams_.push_back(made);
      order(stream_of(stream), made);
    }
  } catch (...) {
    join();
    throw;
  }
}

Fork::~Fork() { join(); }

void Fork::join() {
  for (const Stream stream : streams_) {
    try {
      order(stream_of(stream), stream_of(origin_));
    } catch (const Error&) {
      cudaStreamSynchronize(stream_of(stream));  // the memory must not be freed under its kernels
    }
    cudaStreamDestroy(stream_of(stream));  // once its work is done
  }
}

void launch_on_device(const Launch& launch, const void* kernel, void** arguments) {
  constexpr int64_t kAlwaysThere = 48 << 10;
  if (launch.shared_bytes > kAlwaysThere) {
    // All that there is, always: two threads that ask for different sizes cannot cross each other.
    int device = 0, most = 0;
    check(cudaGetDevice(&device), "asking for the current device");
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          "asking for the shared memory of a block");
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
          "asking for shared memory for " + described(launch));
  }
  const dim3 grid(launch.grid.x, launch.grid.y, launch.grid.z);
  cudaError_t status = cudaLaunchKernel(kernel, grid, dim3(launch.threads), arguments,
                                        launch.shared_bytes, stream_of(launch.stream));
  if (status == cudaSuccess) status = finished(stream_of(launch.stream));
  if (status != cudaSuccess) check(status, "launching " + described(launch));
}

#else

namespace {

// Between the beginning and the end of a recording, launches are kept instead of run.
std::vector<std::function<void()>>* recording = nullptr;

}  // namespace

bool emulated() { return true; }

int device_count() { return 1; }

DeviceProperties properties(int) {
  constexpr int64_t kBlock = 227 << 10;  // of an H100
  return {"emulated on the CPU", kBlock, kBlock + (1 << 10)};
}

DeviceGuard::DeviceGuard(int) {}
DeviceGuard::~DeviceGuard() = default;

void set_zero(void* memory, int64_t bytes, Stream) { std::memset(memory, 0, bytes); }

struct Graph::Recorded {
  std::vector<std::function<void()>> launches;
};

Graph::Graph(Stream stream, const std::function<void(Stream)>& record)
    : recorded_(std::make_unique<Recorded>()) {
  recording = &recorded_->launches;
  try {
    record(stream);
  } catch (...) {
    recording = nullptr;
    throw;
  }
  recording = nullptr;
}

Graph::~Graph() = default;

void Graph::launch(Stream) const {
  for (const std::function<void()>& launch : recorded_->launches) launch();
}

Fork::Fork(Stream stream, int count) : origin_(stream), streams_(count, stream) {}
Fork::~Fork() = default;
void Fork::join() {}

void launch_emulated(const Launch& how, std::function<void()> kernel) {
  const emulator::Dim3 grid{static_cast<unsigned>(how.grid.x), static_cast<unsigned>(how.grid.y),
                            static_cast<unsigned>(how.grid.z)};
  const auto run = [how, grid, kernel = std::move(kernel)] {
    try {
      emulator::run({grid, how.threads, how.shared_bytes}, kernel);
    } catch (const std::runtime_error& error) {
      throw Error(described(how) + ": " + error.what());
    }
  };
  if (recording != nullptr)
    recording->push_back(run);
  else
    run();
}

#endif

}  // namespace rlal::cuda
