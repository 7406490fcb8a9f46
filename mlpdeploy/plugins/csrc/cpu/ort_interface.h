// As much of ONNX Runtime's C interface as an operator library needs. ONNX Runtime's packages hold no headers, and its
// interface is a table of function pointers whose places never change, so the few places are written here; a test
// compares them with the real header where that is installed.
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

using Table = void const* const*;

struct ApiBase {
    Table (*get_api)(std::uint32_t version);
    char const* (*get_version)();
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

using CreateStatus = Entry<0, OrtStatus*(int code, char const* message)>;
using CreateCustomOpDomain = Entry<26, OrtStatus*(char const* domain, OrtCustomOpDomain** out)>;
using CustomOpDomainAdd = Entry<27, OrtStatus*(OrtCustomOpDomain* domain, const struct CustomOp* op)>;
using AddCustomOpDomain = Entry<28, OrtStatus*(OrtSessionOptions* options, OrtCustomOpDomain* domain)>;
using GetTensorMutableData = Entry<51, OrtStatus*(OrtValue* value, void** out)>;
using GetDimensionsCount = Entry<61, OrtStatus*(OrtTensorTypeAndShapeInfo const* info, std::size_t* out)>;
using GetDimensions =
    Entry<62, OrtStatus*(OrtTensorTypeAndShapeInfo const* info, std::int64_t* out, std::size_t count)>;
using GetTensorTypeAndShape = Entry<65, OrtStatus*(OrtValue const* value, OrtTensorTypeAndShapeInfo** out)>;
using AllocatorAlloc = Entry<75, OrtStatus*(OrtAllocator* allocator, std::size_t bytes, void** out)>;
using AllocatorFree = Entry<76, OrtStatus*(OrtAllocator* allocator, void* memory)>;
using KernelInfoGetAttributeFloat = Entry<85, OrtStatus*(OrtKernelInfo const* info, char const* name, float* out)>;
using KernelInfoGetAttributeInt64 =
    Entry<86, OrtStatus*(OrtKernelInfo const* info, char const* name, std::int64_t* out)>;
using KernelInfoGetAttributeString =
    Entry<87, OrtStatus*(OrtKernelInfo const* info, char const* name, char* out, std::size_t* size)>;
using KernelContextGetInput =
    Entry<90, OrtStatus*(OrtKernelContext const* context, std::size_t index, OrtValue const** out)>;
using KernelContextGetOutput = Entry<91, OrtStatus*(OrtKernelContext* context, std::size_t index,
                                                    std::int64_t const* sizes, std::size_t count, OrtValue** out)>;
using ReleaseStatus = Entry<93, void(OrtStatus* status)>;
using ReleaseTensorTypeAndShapeInfo = Entry<99, void(OrtTensorTypeAndShapeInfo* info)>;
using ReleaseAllocator = Entry<132, void(OrtAllocator* allocator)>;
using KernelInfoGetConstantInputTensor =
    Entry<249, OrtStatus*(OrtKernelInfo const* info, std::size_t index, int* is_constant, OrtValue const** out)>;
using KernelContextParallelFor =
    Entry<274, OrtStatus*(OrtKernelContext const* context, void (*task)(void* data, std::size_t i), std::size_t total,
                          std::size_t batches, void* data)>;
using KernelInfoGetAllocator = Entry<278, OrtStatus*(OrtKernelInfo const* info, int memory_type, OrtAllocator** out)>;

constexpr int kFail = 1;             // ORT_FAIL
constexpr int kInvalidArgument = 2;  // ORT_INVALID_ARGUMENT
constexpr int kFloat = 1;            // ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
constexpr int kInt8 = 3;             // ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8
constexpr int kInt64 = 7;            // ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64
constexpr int kBfloat16 = 16;        // ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16
constexpr int kRequired = 0;         // INPUT_OUTPUT_REQUIRED
constexpr int kDefaultMemory = 0;    // OrtMemTypeDefault

// OrtCustomOp: what ONNX Runtime asks an operator.
struct CustomOp {
    std::uint32_t version;
    void* (*create)(CustomOp const* op, Table api, OrtKernelInfo const* info);
    char const* (*name)(CustomOp const* op);
    char const* (*provider)(CustomOp const* op);
    int (*input_type)(CustomOp const* op, std::size_t index);
    std::size_t (*input_count)(CustomOp const* op);
    int (*output_type)(CustomOp const* op, std::size_t index);
    std::size_t (*output_count)(CustomOp const* op);
    void (*compute)(void* kernel, OrtKernelContext* context);
    void (*destroy)(void* kernel);
    int (*input_characteristic)(CustomOp const* op, std::size_t index);
    int (*output_characteristic)(CustomOp const* op, std::size_t index);
    int (*input_memory)(CustomOp const* op, std::size_t index);
    int (*variadic_input_count)(CustomOp const* op);
    int (*variadic_input_homogeneous)(CustomOp const* op);
    int (*variadic_output_count)(CustomOp const* op);
    int (*variadic_output_homogeneous)(CustomOp const* op);
    OrtStatus* (*create_v2)(CustomOp const* op, Table api, OrtKernelInfo const* info, void** kernel);
    OrtStatus* (*compute_v2)(void* kernel, OrtKernelContext* context);
    OrtStatus* (*infer_shape)(CustomOp const* op, OrtShapeInferContext* context);
    int (*first_version)(CustomOp const* op);
    int (*last_version)(CustomOp const* op);
    std::size_t (*may_inplace)(int** inputs, int** outputs);
    void (*release_may_inplace)(int* inputs, int* outputs);
    std::size_t (*alias)(int** inputs, int** outputs);
    void (*release_alias)(int* inputs, int* outputs);
};

}  // namespace mlpdeploy::cpu::ort
