#include "cuda_memory.hpp"

namespace toolkit {

Failure cuda_failure(const std::string& doing, cudaError_t status) {
  if (status == cudaSuccess) return std::nullopt;
  return Error{doing + ": " + cudaGetErrorString(status), ""};
}

Result<Device> first_device() {
  int count = 0;
  const auto status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    const std::string why = status == cudaSuccess ? "there is none" : cudaGetErrorString(status);
    return Error{"a TensorRT engine needs an NVIDIA GPU: " + why, "Run this program where a GPU and its driver are."};
  }
  cudaDeviceProp properties{};
  if (auto failure = cuda_failure("no properties of the GPU", cudaGetDeviceProperties(&properties, 0))) return *failure;
  return Device{"sm" + std::to_string(properties.major) + std::to_string(properties.minor), properties.name};
}

Result<std::unique_ptr<Stream>> Stream::make() {
  std::unique_ptr<Stream> stream(new Stream());
  if (auto failure = cuda_failure("no CUDA stream", cudaStreamCreate(&stream->handle_))) return *failure;
  return stream;
}

Stream::~Stream() {
  if (handle_ != nullptr) cudaStreamDestroy(handle_);
}

Failure Stream::wait() const { return cuda_failure("the GPU failed", cudaStreamSynchronize(handle_)); }

DeviceBuffer::~DeviceBuffer() { cudaFree(address_); }

Failure DeviceBuffer::reserve(std::size_t bytes) {
  if (address_ != nullptr && bytes <= bytes_) return std::nullopt;
  cudaFree(address_);
  address_ = nullptr;
  bytes_ = bytes == 0 ? 1 : bytes;  // an empty tensor needs an address too
  return cuda_failure("no memory on the GPU for " + std::to_string(bytes) + " bytes", cudaMalloc(&address_, bytes_));
}

}  // namespace toolkit
