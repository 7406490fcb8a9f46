#include <cuda_runtime.h>

#include <algorithm>

#include "axial_shift.h"
#include "axial_shift_index.h"

namespace mlpdeploy {
namespace {

constexpr int kTHREADS = 256;
// Of one sweep of the grid: beyond it a thread goes on with the next chunk. A
// narrow index plus this is below 2^31.
constexpr int64_t kMOST_ELEMENTS = kNARROW_LIMIT / 2;

template <typename T, int kCOUNT, typename Divide, typename Index>
__global__ void __launch_bounds__(kTHREADS)
    axial_shift_kernel(ShiftPlan<Index> const plan, Dividers<Divide> const divide, T const* __restrict__ x,
                       T* __restrict__ y_w, T* __restrict__ y_h) {
    Index const stride = static_cast<Index>(gridDim.x) * kTHREADS * kCOUNT;
    Index first = (static_cast<Index>(blockIdx.x) * kTHREADS + static_cast<Index>(threadIdx.x)) * kCOUNT;
    for (; first < plan.total; first += stride) {
        shift_chunk<T, kCOUNT>(plan, divide, x, y_w, y_h, first);
    }
}

template <typename V, typename T>
cudaError_t launch(AxialShiftParams const& params, T const* x, T* y_w, T* y_h, cudaStream_t stream) {
    constexpr int kCOUNT = V::kElements;
    auto const plan = plan_of<typename V::Index>(params);
    auto const divide = dividers_of<typename V::Divide>(plan);
    int64_t const blocks = (static_cast<int64_t>(plan.total) + kTHREADS * kCOUNT - 1) / (kTHREADS * kCOUNT);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(std::min(blocks, kMOST_ELEMENTS / (kTHREADS * kCOUNT))));
    config.blockDim = dim3(kTHREADS);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, axial_shift_kernel<T, kCOUNT, typename V::Divide, typename V::Index>, plan,
                              divide, x, y_w, y_h);
}

template <typename T>
cudaError_t launch_all(AxialShiftParams const& params, void const* x, void* y_w, void* y_h, cudaStream_t stream) {
    cudaError_t status = cudaSuccess;
    for_each_launch(params, static_cast<T const*>(x), static_cast<T*>(y_w), static_cast<T*>(y_h), kNARROW_LIMIT,
                    [&](auto variant, AxialShiftParams const& part, T const* from, T* to_w, T* to_h) {
                        status = launch<decltype(variant)>(part, from, to_w, to_h, stream);
                        return status == cudaSuccess;
                    });
    return status;
}

}  // namespace

cudaError_t launch_axial_shift(AxialShiftParams const& params, void const* x, void* y_w, void* y_h, ElementType type,
                               cudaStream_t stream) {
    if (refusal(params) != nullptr) {
        return cudaErrorInvalidValue;
    }
    if (params.n == 0 || params.c == 0) {
        return cudaSuccess;
    }
    if (x == nullptr || y_w == nullptr || y_h == nullptr) {
        return cudaErrorInvalidValue;
    }
    switch (type) {
        case ElementType::kFLOAT32:
            return launch_all<uint32_t>(params, x, y_w, y_h, stream);
        case ElementType::kFLOAT16:
        case ElementType::kBFLOAT16:
            return launch_all<uint16_t>(params, x, y_w, y_h, stream);
        case ElementType::kINT8:
            return launch_all<uint8_t>(params, x, y_w, y_h, stream);
        default:
            return cudaErrorInvalidValue;
    }
}

}  // namespace mlpdeploy
