// What our code asks of the driver through pycuda and the C++ library does not: on the simulated GPU of
// cpp/tests/fakes.
#include <atomic>
#include <cstring>

#include "fake_gpu.h"

namespace {

std::atomic<int> now{0};

}  // namespace

struct CUevent_st {
    int time = 0;  // 0 until it has happened
};

FAKE_API CUresult cuDriverGetVersion(int* version) { return *version = CUDA_VERSION, CUDA_SUCCESS; }

FAKE_API CUresult cuGetErrorString(CUresult error, char const** text) { return cuGetErrorName(error, text); }

FAKE_API CUresult cuEventCreate(CUevent* out, unsigned) { return *out = new CUevent_st, CUDA_SUCCESS; }

FAKE_API CUresult cuEventDestroy(CUevent event) {
    delete event;
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuEventRecord(CUevent event, CUstream stream) {
    auto const happen = [event] { event->time = ++now; };
    stream == nullptr ? happen() : fake_enqueue(stream, happen);  // nothing waits in the default stream
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuEventElapsedTime(float* milliseconds, CUevent first, CUevent second) {
    if (first->time == 0 || second->time == 0) return CUDA_ERROR_NOT_READY;
    return *milliseconds = static_cast<float>(second->time - first->time), CUDA_SUCCESS;
}

FAKE_API CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    fake_enqueue(stream, [event] {
        if (event->time == 0) fake_violation("an event that nobody records is waited for");
    });
    return CUDA_SUCCESS;
}

// Memory is of the primary context, but for what the probe makes up: an address of another one, of none, of no memory.
FAKE_API CUresult cuPointerGetAttribute(void* data, CUpointer_attribute which, CUdeviceptr pointer) {
    if (which != CU_POINTER_ATTRIBUTE_CONTEXT || pointer == 0x7F0000000003) return CUDA_ERROR_INVALID_VALUE;
    CUcontext context = nullptr;
    if (pointer == 0x7F0000000001) {
        context = reinterpret_cast<CUcontext>(&now);
    } else if (pointer != 0x7F0000000002) {
        cuDevicePrimaryCtxRetain(&context, 0);
        cuDevicePrimaryCtxRelease(0);
    }
    return *static_cast<CUcontext*>(data) = context, CUDA_SUCCESS;
}

FAKE_API CUresult cuCtxSynchronize() { return CUDA_SUCCESS; }

FAKE_API CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
    void* const target = fake_memory(reinterpret_cast<void*>(to), bytes);
    void const* const source = fake_memory(reinterpret_cast<void*>(from), bytes);
    fake_enqueue(stream, [=] { std::memcpy(target, source, bytes); });
    return CUDA_SUCCESS;
}
