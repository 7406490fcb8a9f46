// The fastest that any kernel of one read and two writes could be on this GPU: a copy that writes its input twice.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kTHREADS = 256;

__global__ void copy_twice_kernel(uint4 const* __restrict__ x, uint4* __restrict__ one, uint4* __restrict__ two,
                                  int64_t chunks) {
    int64_t const i = static_cast<int64_t>(blockIdx.x) * kTHREADS + threadIdx.x;
    if (i < chunks) {
        uint4 const value = x[i];
        one[i] = value;
        two[i] = value;
    }
}

}  // namespace

extern "C" int mlpdeploy_copy_twice(void const* x, void* one, void* two, int64_t bytes, void* stream) {
    int64_t const chunks = bytes / static_cast<int64_t>(sizeof(uint4));
    auto const blocks = static_cast<unsigned>((chunks + kTHREADS - 1) / kTHREADS);
    copy_twice_kernel<<<blocks, kTHREADS, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<uint4 const*>(x), static_cast<uint4*>(one), static_cast<uint4*>(two), chunks);
    return cudaGetLastError();
}
