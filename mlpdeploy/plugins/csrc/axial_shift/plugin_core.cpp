#include "plugin_core.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

#include "axial_shift.h"

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorFormat;

namespace mlpdeploy {
namespace {

constexpr char kSHIFT_SIZE[] = "shift_size";
constexpr char kDILATION[] = "dilation";
constexpr char kPADDING[] = "padding";
constexpr char kCHANNELS[] = "channels";
// A node carries these for TensorRT's importer; they may reach us, and say
// nothing new.
constexpr std::array<char const*, 2> kIMPORTER_FIELDS{"plugin_version", "plugin_namespace"};

struct PaddingName {
    Padding padding;
    char const* name;
};
constexpr std::array<PaddingName, 4> kPADDING_NAMES{{{Padding::kZERO, "zero"},
                                                     {Padding::kCIRCULAR, "circular"},
                                                     {Padding::kREFLECT, "reflect"},
                                                     {Padding::kREPLICATE, "replicate"}}};

/// Channels of a block where the format does not fix them: all, or all rounded
/// up to a multiple of this.
struct Combination {
    DataType type;
    TensorFormat format;
    ElementType element;
    int64_t fixed_block;  // 0: the channels, rounded up
    int64_t multiple;
};

// Everything that this plugin takes. All three tensors have the same type and
// format.
constexpr Combination kCOMBINATIONS[] = {
    {DataType::kFLOAT, TensorFormat::kLINEAR, ElementType::kFLOAT32, kPLANAR, 1},
    {DataType::kFLOAT, TensorFormat::kHWC, ElementType::kFLOAT32, 0, 1},
    {DataType::kHALF, TensorFormat::kLINEAR, ElementType::kFLOAT16, kPLANAR, 1},
    {DataType::kHALF, TensorFormat::kHWC8, ElementType::kFLOAT16, 0, 8},
#if NV_TENSORRT_MAJOR >= 9
    {DataType::kBF16, TensorFormat::kLINEAR, ElementType::kBFLOAT16, kPLANAR, 1},
    {DataType::kBF16, TensorFormat::kHWC8, ElementType::kBFLOAT16, 0, 8},
#endif
    {DataType::kINT8, TensorFormat::kLINEAR, ElementType::kINT8, kPLANAR, 1},
    {DataType::kINT8, TensorFormat::kHWC16, ElementType::kINT8, 0, 16},
    {DataType::kINT8, TensorFormat::kCHW32, ElementType::kINT8, 32, 1},
};

Combination const* combination_of(DataType type, TensorFormat format) {
    auto const* const found = std::find_if(std::begin(kCOMBINATIONS), std::end(kCOMBINATIONS), [&](auto const& entry) {
        return entry.type == type && entry.format == format;
    });
    return found == std::end(kCOMBINATIONS) ? nullptr : found;
}

char const* name_of(Padding padding) {
    for (auto const& entry : kPADDING_NAMES) {
        if (entry.padding == padding) {
            return entry.name;
        }
    }
    throw std::invalid_argument("padding has no name");
}

int32_t integer_of(PluginField const& field) {
    if (field.data == nullptr || field.length != 1) {
        throw std::invalid_argument(std::string(field.name) + " must be one integer");
    }
    switch (field.type) {
        case PluginFieldType::kINT32: {
            int32_t value = 0;
            std::memcpy(&value, field.data, sizeof(value));
            return value;
        }
#if NV_TENSORRT_MAJOR >= 9
        case PluginFieldType::kINT64: {
            int64_t value = 0;
            std::memcpy(&value, field.data, sizeof(value));
            if (value < INT32_MIN || value > INT32_MAX) {
                throw std::invalid_argument(std::string(field.name) + " is too large");
            }
            return static_cast<int32_t>(value);
        }
#endif
        default:
            throw std::invalid_argument(std::string(field.name) + " must be an integer");
    }
}

Padding padding_of(PluginField const& field) {
    if (field.data == nullptr || field.type != PluginFieldType::kCHAR || field.length < 0) {
        throw std::invalid_argument("padding must be a string");
    }
    std::string name(static_cast<char const*>(field.data), static_cast<size_t>(field.length));
    name.resize(std::strlen(name.c_str()));  // some callers count the closing zero
    for (auto const& entry : kPADDING_NAMES) {
        if (name == entry.name) {
            return entry.padding;
        }
    }
    throw std::invalid_argument("padding is '" + name + "', wanted zero, circular, reflect or replicate");
}

}  // namespace

void check_attributes(AxialShiftAttributes const& attributes) {
    if (char const* reason = attribute_refusal(attributes.shift_size, attributes.dilation, attributes.padding)) {
        throw std::invalid_argument(reason);
    }
    if (attributes.channels < 0) {
        throw std::invalid_argument("channels must not be negative");
    }
}

AxialShiftAttributes attributes_from_fields(nvinfer1::PluginFieldCollection const* fields) {
    if (fields == nullptr || (fields->nbFields > 0 && fields->fields == nullptr)) {
        throw std::invalid_argument("no fields");
    }
    AxialShiftAttributes attributes{};
    bool has_shift_size = false;
    bool has_dilation = false;
    bool has_padding = false;
    for (int32_t i = 0; i < fields->nbFields; ++i) {
        PluginField const& field = fields->fields[i];
        std::string const name = field.name ? field.name : "";
        if (name == kSHIFT_SIZE) {
            attributes.shift_size = integer_of(field);
            has_shift_size = true;
        } else if (name == kDILATION) {
            attributes.dilation = integer_of(field);
            has_dilation = true;
        } else if (name == kPADDING) {
            attributes.padding = padding_of(field);
            has_padding = true;
        } else if (name == kCHANNELS) {
            attributes.channels = integer_of(field);
        } else if (std::find(kIMPORTER_FIELDS.begin(), kIMPORTER_FIELDS.end(), name) == kIMPORTER_FIELDS.end()) {
            throw std::invalid_argument("unknown field '" + name + "'");
        }
    }
    if (!has_shift_size || !has_dilation || !has_padding) {
        throw std::invalid_argument("shift_size, dilation and padding must all be given");
    }
    check_attributes(attributes);
    return attributes;
}

std::vector<PluginField> fields_of(AxialShiftAttributes const& attributes) {
    char const* const padding = name_of(attributes.padding);
    return {{kSHIFT_SIZE, &attributes.shift_size, PluginFieldType::kINT32, 1},
            {kDILATION, &attributes.dilation, PluginFieldType::kINT32, 1},
            {kPADDING, padding, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(padding))},
            {kCHANNELS, &attributes.channels, PluginFieldType::kINT32, 1}};
}

std::vector<PluginField> field_names() {
    return {{kSHIFT_SIZE, nullptr, PluginFieldType::kINT32, 1},
            {kDILATION, nullptr, PluginFieldType::kINT32, 1},
            {kPADDING, nullptr, PluginFieldType::kCHAR, 1},
            {kCHANNELS, nullptr, PluginFieldType::kINT32, 1}};
}

std::string timing_cache_id(AxialShiftAttributes const& attributes) {
    return std::string("shift_size=") + std::to_string(attributes.shift_size) +
           ",dilation=" + std::to_string(attributes.dilation) + ",padding=" + name_of(attributes.padding) +
           ",channels=" + std::to_string(attributes.channels);
}

bool supports(int32_t position, nvinfer1::PluginTensorDesc const& tensor, nvinfer1::PluginTensorDesc const& input) {
    if (position < 0 || position >= kINPUTS + kOUTPUTS) {
        throw std::invalid_argument("there is no tensor at this position");
    }
    if (position != kX && (tensor.type != input.type || tensor.format != input.format)) {
        return false;
    }
    return combination_of(tensor.type, tensor.format) != nullptr;
}

void check_counts(int32_t inputs, int32_t outputs) {
    if (inputs != kINPUTS || outputs != kOUTPUTS) {
        throw std::invalid_argument("wanted 1 input and 2 outputs");
    }
}

AxialShiftParams params_from(AxialShiftAttributes const& attributes, nvinfer1::PluginTensorDesc const& input) {
    if (input.dims.nbDims != kRANK) {
        throw std::invalid_argument("x must have four dimensions: N, C, H, W");
    }
    auto const* const sizes = input.dims.d;
    if (attributes.channels != 0 && sizes[1] != attributes.channels) {
        throw std::invalid_argument("x has " + std::to_string(sizes[1]) + " channels, the node says " +
                                    std::to_string(attributes.channels));
    }
    Combination const* const combination = combination_of(input.type, input.format);
    if (combination == nullptr) {
        throw std::invalid_argument("this type and format were never offered");
    }
    int64_t const rounded = (sizes[1] + combination->multiple - 1) / combination->multiple * combination->multiple;
    AxialShiftParams const params{sizes[0],
                                  sizes[1],
                                  sizes[2],
                                  sizes[3],
                                  combination->fixed_block ? combination->fixed_block : std::max<int64_t>(rounded, 1),
                                  attributes.shift_size,
                                  attributes.dilation,
                                  attributes.padding};
    if (char const* reason = refusal(params)) {
        throw std::invalid_argument(reason);
    }
    return params;
}

void check_profile(AxialShiftAttributes const& attributes, nvinfer1::DynamicPluginTensorDesc const& input) {
    nvinfer1::PluginTensorDesc smallest = input.desc;
    smallest.dims = input.min;
    bool const known = smallest.dims.nbDims == kRANK &&
                       std::all_of(smallest.dims.d, smallest.dims.d + kRANK, [](auto size) { return size > 0; });
    if (known) {
        params_from(attributes, smallest);
    }
}

void run_axial_shift(AxialShiftAttributes const& attributes, nvinfer1::PluginTensorDesc const& input,
                     void const* const* inputs, void* const* outputs, cudaStream_t stream) {
    AxialShiftParams const params = params_from(attributes, input);
    ElementType const element = combination_of(input.type, input.format)->element;
    cudaError_t const status = launch_axial_shift(params, inputs[kX], outputs[kY_W], outputs[kY_H], element, stream);
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string("the kernel was not launched: ") + cudaGetErrorString(status));
    }
}

}  // namespace mlpdeploy
