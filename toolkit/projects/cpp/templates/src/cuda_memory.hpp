// Memory of a GPU and the stream that its work is put on, freed when they go.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>

#include "result.hpp"

namespace toolkit {

/// A CUDA call's error as a value.
[[nodiscard]] Failure cuda_failure(const std::string& doing, cudaError_t status);

/// The first GPU's architecture, as `sm89`, and its name.
struct Device {
  std::string architecture;
  std::string name;
};
Result<Device> first_device();

class Stream {
 public:
  static Result<std::unique_ptr<Stream>> make();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t handle() const { return handle_; }
  [[nodiscard]] Failure wait() const;

 private:
  Stream() = default;
  cudaStream_t handle_ = nullptr;
};

/// Memory of the GPU that only grows: what is larger than before is allocated anew.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  [[nodiscard]] Failure reserve(std::size_t bytes);
  void* address() const { return address_; }

 private:
  void* address_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace toolkit
