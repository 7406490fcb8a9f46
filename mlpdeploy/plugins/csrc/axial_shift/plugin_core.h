// What both plugin faces of the axial shift share: attributes, formats, shapes,
// the launch. Errors are exceptions here; the faces catch them with guard().
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "axial_shift_params.h"

namespace mlpdeploy {

constexpr char kPLUGIN_NAME[] = "AxialShift";
constexpr char kPLUGIN_VERSION[] = "1";
constexpr char kPLUGIN_NAMESPACE[] = "mlpdeploy";

// Tensor slots.
constexpr int32_t kINPUTS = 1;
constexpr int32_t kOUTPUTS = 2;
constexpr int32_t kX = 0;
constexpr int32_t kY_W = 0;
constexpr int32_t kY_H = 1;
constexpr int32_t kRANK = 4;

/// The attributes of one node, checked.
struct AxialShiftAttributes {
    int32_t shift_size;
    int32_t dilation;
    Padding padding;
    int32_t channels;  // 0 where the node does not say
};

/// Return the attributes of a field collection, which is a node's or what
/// fields_of() serialized. Throws std::invalid_argument: a field is missing,
/// unknown, of another type or out of range.
AxialShiftAttributes attributes_from_fields(nvinfer1::PluginFieldCollection const* fields);

/// Throws std::invalid_argument for attributes out of range.
void check_attributes(AxialShiftAttributes const& attributes);

/// Return fields that point into `attributes`, which must outlive them.
std::vector<nvinfer1::PluginField> fields_of(AxialShiftAttributes const& attributes);

/// Return the names and types of all fields, without values, as a creator tells
/// them.
std::vector<nvinfer1::PluginField> field_names();

/// Return a string that differs wherever the attributes do.
std::string timing_cache_id(AxialShiftAttributes const& attributes);

/// Return whether tensor `position` (input, then outputs) may have this type
/// and format; those before it are decided.
bool supports(int32_t position, nvinfer1::PluginTensorDesc const& tensor, nvinfer1::PluginTensorDesc const& input);

/// Throws std::invalid_argument unless there are as many tensors as this
/// operator has.
void check_counts(int32_t inputs, int32_t outputs);

/// Return the kernel's parameters for an input.
/// Throws std::invalid_argument: a rank, a size or a channel count that does
/// not fit the attributes.
AxialShiftParams params_from(AxialShiftAttributes const& attributes, nvinfer1::PluginTensorDesc const& input);

/// Check the smallest sizes of a profile, where they are known: what they
/// refuse would fail later, at run time. Throws std::invalid_argument.
void check_profile(AxialShiftAttributes const& attributes, nvinfer1::DynamicPluginTensorDesc const& input);

/// Launch the kernel. Throws std::invalid_argument or std::runtime_error.
void run_axial_shift(AxialShiftAttributes const& attributes, nvinfer1::PluginTensorDesc const& input,
                     void const* const* inputs, void* const* outputs, cudaStream_t stream);

}  // namespace mlpdeploy
