// launch_axial_shift() without a GPU: the same refusals, and the kernel's
// threads in a plain loop. Linked with c_launcher.cpp it is a library that the
// torch operator can call on memory of the CPU.
#include "axial_shift.h"
#include "axial_shift_index.h"

namespace mlpdeploy {
namespace {

template <typename T>
void run(AxialShiftParams const& params, void const* x, void* y_w, void* y_h) {
    for_each_launch(params, static_cast<T const*>(x), static_cast<T*>(y_w), static_cast<T*>(y_h), kNARROW_LIMIT,
                    [](auto variant, AxialShiftParams const& part, T const* from, T* to_w, T* to_h) {
                        using V = decltype(variant);
                        auto const plan = plan_of<typename V::Index>(part);
                        auto const divide = dividers_of<typename V::Divide>(plan);
                        for (typename V::Index first = 0; first < plan.total; first += V::kElements) {
                            shift_chunk<T, V::kElements>(plan, divide, from, to_w, to_h, first);
                        }
                        return true;
                    });
}

}  // namespace

cudaError_t launch_axial_shift(AxialShiftParams const& params, void const* x, void* y_w, void* y_h, ElementType type,
                               cudaStream_t stream) {
    if (refusal(params) != nullptr || stream == nullptr) {  // the operator always names a stream
        return cudaErrorInvalidValue;
    }
    switch (type) {
        case ElementType::kFLOAT32:
            run<uint32_t>(params, x, y_w, y_h);
            return cudaSuccess;
        case ElementType::kFLOAT16:
        case ElementType::kBFLOAT16:
            run<uint16_t>(params, x, y_w, y_h);
            return cudaSuccess;
        case ElementType::kINT8:
            run<uint8_t>(params, x, y_w, y_h);
            return cudaSuccess;
        default:
            return cudaErrorInvalidValue;
    }
}

}  // namespace mlpdeploy
