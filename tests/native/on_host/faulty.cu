// Kernels that are wrong, each in one way, so that tests see the host find it. Never built for a device.
#include "element.cuh"
#include "launch.cuh"

namespace faulty {

struct alignas(16) Four {
  float at[4];
};

__global__ void no_barrier(float* y, const float* x) {
  __shared__ float row[64];
  row[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = row[63 - threadIdx.x];
}

__global__ void overwritten_early(float* y, const float* x) {
  __shared__ float row[64];
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    row[threadIdx.x] = x[threadIdx.x] + round;
    __syncthreads();
    sum += row[63 - threadIdx.x];
  }
  y[threadIdx.x] = sum;
}

__global__ void blocks_meet(float* y, const float* x) { y[threadIdx.x] = x[threadIdx.x] + blockIdx.x; }

__global__ void reads_behind(float* y, const float* x) { y[threadIdx.x] = x[threadIdx.x + 1]; }

__global__ void reads_before(float* y, const float* x) { y[threadIdx.x] = x[static_cast<int>(threadIdx.x) - 1]; }

__global__ void writes_behind(float* y, const float* x) { y[threadIdx.x + 1] = x[threadIdx.x]; }

__global__ void never_written(float* y, const float*) {
  __shared__ float row[64];
  y[threadIdx.x] = row[threadIdx.x];
}

__global__ void some_wait(float* y, const float* x) {
  if (threadIdx.x < 32) __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}

__global__ void misaligned(float* y, const float* x) {
  if (threadIdx.x == 0) *reinterpret_cast<Four*>(y) = *reinterpret_cast<const Four*>(x + 1);
}

__global__ void outside_its_array(float* y, const float* x) {
  __shared__ float row[64];
  row[threadIdx.x + 1] = x[threadIdx.x];
  y[threadIdx.x] = 0.0f;
}

__global__ void outside_its_mask(float* y, const float* x) {
  if (threadIdx.x % 32 < 16) y[threadIdx.x] = __shfl_sync(0xffffu, x[threadIdx.x], 20);
}

__global__ void right(float* y, const float* x) {
  __shared__ float row[64];
  row[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, row[63 - threadIdx.x], 1);
}

// Two blocks of 64 threads over x and y of 64 elements.
void run(const std::string& name, float* y, const float* x, void* stream) {
  cudaStream_t queue = static_cast<cudaStream_t>(stream);
  if (name == "no_barrier") no_barrier<<<2, 64, 0, queue>>>(y, x);
  if (name == "overwritten_early") overwritten_early<<<2, 64, 0, queue>>>(y, x);
  if (name == "blocks_meet") blocks_meet<<<2, 64, 0, queue>>>(y, x);
  if (name == "reads_behind") reads_behind<<<2, 64, 0, queue>>>(y, x);
  if (name == "reads_before") reads_before<<<2, 64, 0, queue>>>(y, x);
  if (name == "writes_behind") writes_behind<<<2, 64, 0, queue>>>(y, x);
  if (name == "never_written") never_written<<<2, 64, 0, queue>>>(y, x);
  if (name == "some_wait") some_wait<<<2, 64, 0, queue>>>(y, x);
  if (name == "misaligned") misaligned<<<2, 64, 0, queue>>>(y, x);
  if (name == "outside_its_array") outside_its_array<<<2, 64, 0, queue>>>(y, x);
  if (name == "outside_its_mask") outside_its_mask<<<2, 64, 0, queue>>>(y, x);
  if (name == "right") right<<<2, 64, 0, queue>>>(y, x);
}

}  // namespace faulty
