// As much of ONNX Runtime's C interface as an operator library needs. ONNX Runtime's packages hold no headers, and its
// interface is a table of function pointers whose places never change, so the few places are written here; a test compares
// them with the real header where that is installed.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtSessionOptions;
struct OrtStatus;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtAllocator;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;

namespace mlpdeploy::cpu::ort {

// The first version that has every entry below: ONNX Runtime 1.18.
constexpr std::uint32_t kVersion = 18;

using Table = const void* const*;

struct ApiBase {
    Table (*get_api)(std::uint32_t version);
    const char* (*get_version)();
};

// An entry of the table: its place and its type.
template <std::size_t Place, typename Function>
struct Entry;
template <std::size_t Place, typename Result, typename... Arguments>
struct Entry<Place, Result(Arguments...)> {
    static constexpr std::size_t kPlace = Place;
    static Result call(Table api, Arguments... arguments) {
        return reinterpret_cast<Result (*)(Arguments...)>(const_cast<void*>(api[Place]))(arguments...);
    }
};

using CreateStatus = Entry<0, OrtStatus*(int code, const char* message)>;
using CreateCustomOpDomain = Entry<26, OrtStatus*(const char* domain, OrtCustomOpDomain** out)>;
using CustomOpDomainAdd = Entry<27, OrtStatus*(OrtCustomOpDomain* domain, const struct CustomOp* op)>;
using AddCustomOpDomain = Entry<28, OrtStatus*(OrtSessionOptions* options, OrtCustomOpDomain* domain)>;
using GetTensorMutableData = Entry<51, OrtStatus*(OrtValue* value, void** out)>;
using GetDimensionsCount = Entry<61, OrtStatus*(const OrtTensorTypeAndShapeInfo* info, std::size_t* out)>;
using GetDimensions = Entry<62, OrtStatus*(const OrtTensorTypeAndShapeInfo* info, std::int64_t* out, std::size_t count)>;
using GetTensorTypeAndShape = Entry<65, OrtStatus*(const OrtValue* value, OrtTensorTypeAndShapeInfo** out)>;
using AllocatorAlloc = Entry<75, OrtStatus*(OrtAllocator* allocator, std::size_t bytes, void** out)>;
using AllocatorFree = Entry<76, OrtStatus*(OrtAllocator* allocator, void* memory)>;
using KernelInfoGetAttributeFloat = Entry<85, OrtStatus*(const OrtKernelInfo* info, const char* name, float* out)>;
using KernelInfoGetAttributeInt64 = Entry<86, OrtStatus*(const OrtKernelInfo* info, const char* name, std::int64_t* out)>;
using KernelInfoGetAttributeString =
    Entry<87, OrtStatus*(const OrtKernelInfo* info, const char* name, char* out, std::size_t* size)>;
using KernelContextGetInput =
    Entry<90, OrtStatus*(const OrtKernelContext* context, std::size_t index, const OrtValue** out)>;
using KernelContextGetOutput = Entry<91, OrtStatus*(OrtKernelContext* context, std::size_t index,
                                                    const std::int64_t* sizes, std::size_t count, OrtValue** out)>;
using ReleaseStatus = Entry<93, void(OrtStatus* status)>;
using ReleaseTensorTypeAndShapeInfo = Entry<99, void(OrtTensorTypeAndShapeInfo* info)>;
using ReleaseAllocator = Entry<132, void(OrtAllocator* allocator)>;
using KernelInfoGetConstantInputTensor =
    Entry<249, OrtStatus*(const OrtKernelInfo* info, std::size_t index, int* is_constant, const OrtValue** out)>;
using KernelContextParallelFor =
    Entry<274, OrtStatus*(const OrtKernelContext* context, void (*task)(void* data, std::size_t i), std::size_t total,
                          std::size_t batches, void* data)>;
using KernelInfoGetAllocator =
    Entry<278, OrtStatus*(const OrtKernelInfo* info, int memory_type, OrtAllocator** out)>;

constexpr int kFail = 1;             // ORT_FAIL
constexpr int kInvalidArgument = 2;  // ORT_INVALID_ARGUMENT
constexpr int kFloat = 1;            // ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
constexpr int kInt64 = 7;            // ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64
constexpr int kRequired = 0;         // INPUT_OUTPUT_REQUIRED
constexpr int kDefaultMemory = 0;    // OrtMemTypeDefault

// OrtCustomOp: what ONNX Runtime asks an operator.
struct CustomOp {
    std::uint32_t version;
    void* (*create)(const CustomOp* op, Table api, const OrtKernelInfo* info);
    const char* (*name)(const CustomOp* op);
    const char* (*provider)(const CustomOp* op);
    int (*input_type)(const CustomOp* op, std::size_t index);
    std::size_t (*input_count)(const CustomOp* op);
    int (*output_type)(const CustomOp* op, std::size_t index);
    std::size_t (*output_count)(const CustomOp* op);
    void (*compute)(void* kernel, OrtKernelContext* context);
    void (*destroy)(void* kernel);
    int (*input_characteristic)(const CustomOp* op, std::size_t index);
    int (*output_characteristic)(const CustomOp* op, std::size_t index);
    int (*input_memory)(const CustomOp* op, std::size_t index);
    int (*variadic_input_count)(const CustomOp* op);
    int (*variadic_input_homogeneous)(const CustomOp* op);
    int (*variadic_output_count)(const CustomOp* op);
    int (*variadic_output_homogeneous)(const CustomOp* op);
    OrtStatus* (*create_v2)(const CustomOp* op, Table api, const OrtKernelInfo* info, void** kernel);
    OrtStatus* (*compute_v2)(void* kernel, OrtKernelContext* context);
    OrtStatus* (*infer_shape)(const CustomOp* op, OrtShapeInferContext* context);
    int (*first_version)(const CustomOp* op);
    int (*last_version)(const CustomOp* op);
    std::size_t (*may_inplace)(int** inputs, int** outputs);
    void (*release_may_inplace)(int* inputs, int* outputs);
    std::size_t (*alias)(int** inputs, int** outputs);
    void (*release_alias)(int* inputs, int* outputs);
};

}  // namespace mlpdeploy::cpu::ort
