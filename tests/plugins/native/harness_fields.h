// A node's attributes as TensorRT's importer hands them over, and the ways in which they can be wrong.
#pragma once

#include <NvInferRuntime.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

struct Node {
    int32_t shift_size = 5;
    int32_t dilation = 2;
    std::string padding = "reflect";
    int32_t channels = 96;
    std::vector<nvinfer1::PluginField> fields;
    nvinfer1::PluginFieldCollection collection{};

    Node() {
        using Type = nvinfer1::PluginFieldType;
        fields = {{"shift_size", &shift_size, Type::kINT32, 1},
                  {"dilation", &dilation, Type::kINT32, 1},
                  {"padding", padding.data(), Type::kCHAR, static_cast<int32_t>(padding.size())},
                  {"channels", &channels, Type::kINT32, 1}};
    }
    Node(Node const&) = delete;
    Node& operator=(Node const&) = delete;

    void set_padding(char const* name) {
        padding = name;
        fields[2].data = padding.data();
        fields[2].length = static_cast<int32_t>(padding.size());
    }
    nvinfer1::PluginFieldCollection const* get() {
        collection = {static_cast<int32_t>(fields.size()), fields.data()};
        return &collection;
    }
};

/// Nodes that must be refused: each function spoils a good one.
inline std::vector<std::function<void(Node&)>> bad_nodes() {
    using Type = nvinfer1::PluginFieldType;
    static float const real = 5.0F;
    return {
        [](Node& node) { node.shift_size = 4; },
        [](Node& node) { node.shift_size = 0; },
        [](Node& node) { node.shift_size = -5; },
        [](Node& node) { node.dilation = 0; },
        [](Node& node) { node.dilation = -1; },
        [](Node& node) { node.channels = -1; },
        [](Node& node) { node.set_padding("mirror"); },
        [](Node& node) { node.set_padding("zer"); },
        [](Node& node) { node.set_padding("zeros"); },
        [](Node& node) { node.set_padding(""); },
        [](Node& node) { node.fields[0] = {"shift_size", &real, Type::kFLOAT32, 1}; },
        [](Node& node) { node.fields[0].length = 2; },
        [](Node& node) { node.fields[0].data = nullptr; },
        [](Node& node) { node.fields[2] = {"padding", &node.channels, Type::kINT32, 1}; },
        [](Node& node) { node.fields[2].data = nullptr; },
        [](Node& node) { node.fields.erase(node.fields.begin()); },
        [](Node& node) { node.fields.erase(node.fields.begin() + 1); },
        [](Node& node) { node.fields.erase(node.fields.begin() + 2); },
        [](Node& node) { node.fields.push_back({"shift", &node.channels, Type::kINT32, 1}); },
        [](Node& node) { node.fields.push_back({nullptr, &node.channels, Type::kINT32, 1}); },
        [](Node& node) { node.fields.clear(); },
    };
}

/// What a tensor looks like to a plugin.
inline nvinfer1::PluginTensorDesc tensor(nvinfer1::DataType type, nvinfer1::TensorFormat format, int n, int c, int h,
                                         int w) {
    nvinfer1::PluginTensorDesc desc{};
    desc.dims.nbDims = 4;
    desc.dims.d[0] = n;
    desc.dims.d[1] = c;
    desc.dims.d[2] = h;
    desc.dims.d[3] = w;
    desc.type = type;
    desc.format = format;
    desc.scale = -1.0F;
    return desc;
}

/// Every type that the headers and TensorRT 10.14 have in every format, with those that the plugin's README promises.
struct Expectation {
    nvinfer1::DataType type;
    nvinfer1::TensorFormat format;
    bool promised;
};

inline std::vector<Expectation> all_combinations() {
    using Format = nvinfer1::TensorFormat;
    using Type = nvinfer1::DataType;
    auto promised = [](Type type, Format format) {
        switch (type) {
            case Type::kFLOAT:
                return format == Format::kLINEAR || format == Format::kHWC;
            case Type::kHALF:
#if NV_TENSORRT_MAJOR >= 9
            case Type::kBF16:
#endif
                return format == Format::kLINEAR || format == Format::kHWC8;
            case Type::kINT8:
                return format == Format::kLINEAR || format == Format::kHWC16 || format == Format::kCHW32;
            default:
                return false;
        }
    };
#if NV_TENSORRT_MAJOR >= 10
    constexpr Type kLAST = Type::kINT4;
#else
    constexpr Type kLAST = Type::kFP8;
#endif
    std::vector<Expectation> all;
    for (int type = 0; type <= static_cast<int>(kLAST); ++type) {
        for (int format = 0; format <= static_cast<int>(Format::kDHWC); ++format) {
            auto const t = static_cast<Type>(type);
            auto const f = static_cast<Format>(format);
            all.push_back({t, f, promised(t, f)});
        }
    }
    return all;
}
