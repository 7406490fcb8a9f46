// ort_interface.h against ONNX Runtime's own header: compiled, never run.
#include "ort_interface.h"

#include <onnxruntime_c_api.h>

#include <cstddef>

using namespace mlpdeploy::cpu;

#define SAME_PLACE(ours, theirs) static_assert(ort::ours::kPlace * sizeof(void*) == offsetof(OrtApi, theirs), #theirs)
#define SAME_FIELD(ours, theirs) static_assert(offsetof(ort::CustomOp, ours) == offsetof(OrtCustomOp, theirs), #theirs)

SAME_PLACE(CreateStatus, CreateStatus);
SAME_PLACE(CreateCustomOpDomain, CreateCustomOpDomain);
SAME_PLACE(CustomOpDomainAdd, CustomOpDomain_Add);
SAME_PLACE(AddCustomOpDomain, AddCustomOpDomain);
SAME_PLACE(GetTensorMutableData, GetTensorMutableData);
SAME_PLACE(GetDimensionsCount, GetDimensionsCount);
SAME_PLACE(GetDimensions, GetDimensions);
SAME_PLACE(GetTensorTypeAndShape, GetTensorTypeAndShape);
SAME_PLACE(AllocatorAlloc, AllocatorAlloc);
SAME_PLACE(AllocatorFree, AllocatorFree);
SAME_PLACE(KernelInfoGetAttributeFloat, KernelInfoGetAttribute_float);
SAME_PLACE(KernelInfoGetAttributeInt64, KernelInfoGetAttribute_int64);
SAME_PLACE(KernelInfoGetAttributeString, KernelInfoGetAttribute_string);
SAME_PLACE(KernelContextGetInput, KernelContext_GetInput);
SAME_PLACE(KernelContextGetOutput, KernelContext_GetOutput);
SAME_PLACE(ReleaseStatus, ReleaseStatus);
SAME_PLACE(ReleaseTensorTypeAndShapeInfo, ReleaseTensorTypeAndShapeInfo);
SAME_PLACE(ReleaseAllocator, ReleaseAllocator);
SAME_PLACE(KernelInfoGetConstantInputTensor, KernelInfoGetConstantInput_tensor);
SAME_PLACE(KernelContextParallelFor, KernelContext_ParallelFor);
SAME_PLACE(KernelInfoGetAllocator, KernelInfoGetAllocator);

SAME_FIELD(create, CreateKernel);
SAME_FIELD(name, GetName);
SAME_FIELD(provider, GetExecutionProviderType);
SAME_FIELD(input_type, GetInputType);
SAME_FIELD(input_count, GetInputTypeCount);
SAME_FIELD(output_type, GetOutputType);
SAME_FIELD(output_count, GetOutputTypeCount);
SAME_FIELD(compute, KernelCompute);
SAME_FIELD(destroy, KernelDestroy);
SAME_FIELD(input_characteristic, GetInputCharacteristic);
SAME_FIELD(output_characteristic, GetOutputCharacteristic);
SAME_FIELD(input_memory, GetInputMemoryType);
SAME_FIELD(variadic_input_count, GetVariadicInputMinArity);
SAME_FIELD(variadic_input_homogeneous, GetVariadicInputHomogeneity);
SAME_FIELD(variadic_output_count, GetVariadicOutputMinArity);
SAME_FIELD(variadic_output_homogeneous, GetVariadicOutputHomogeneity);
SAME_FIELD(create_v2, CreateKernelV2);
SAME_FIELD(compute_v2, KernelComputeV2);
SAME_FIELD(infer_shape, InferOutputShapeFn);
SAME_FIELD(first_version, GetStartVersion);
SAME_FIELD(last_version, GetEndVersion);
SAME_FIELD(may_inplace, GetMayInplace);
SAME_FIELD(release_may_inplace, ReleaseMayInplace);
SAME_FIELD(alias, GetAliasMap);
SAME_FIELD(release_alias, ReleaseAliasMap);

static_assert(ort::kVersion <= ORT_API_VERSION);
static_assert(ort::kFail == ORT_FAIL && ort::kInvalidArgument == ORT_INVALID_ARGUMENT);
static_assert(ort::kFloat == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT && ort::kInt64 == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
static_assert(ort::kRequired == INPUT_OUTPUT_REQUIRED && ort::kDefaultMemory == OrtMemTypeDefault);
