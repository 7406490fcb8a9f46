// Drives every method of the IPluginV2DynamicExt but the launch itself, through the library's public entry points.
#include <NvInferRuntime.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "harness.h"
#include "harness_fields.h"

using namespace nvinfer1;

namespace {

struct Destroy {
    void operator()(IPluginV2DynamicExt* plugin) const { plugin->destroy(); }
};
using Plugin = std::unique_ptr<IPluginV2DynamicExt, Destroy>;

struct Builder : IExprBuilder {};
struct Dimension : IDimensionExpr {};

Plugin make(IPluginCreator* creator, Node& node) {
    Plugin plugin(static_cast<IPluginV2DynamicExt*>(creator->createPlugin("node", node.get())));
    CHECK(plugin);
    return plugin;
}

std::vector<char> bytes_of(IPluginV2DynamicExt& plugin) {
    std::vector<char> bytes(plugin.getSerializationSize());
    plugin.serialize(bytes.data());
    return bytes;
}

void check_round_trip(IPluginCreator* creator) {
    Node node;
    Plugin const plugin = make(creator, node);
    std::vector<char> bytes = bytes_of(*plugin);
    Plugin const again(
        static_cast<IPluginV2DynamicExt*>(creator->deserializePlugin("node", bytes.data(), bytes.size())));
    CHECK(again && bytes_of(*again) == bytes);
    Plugin const copy(plugin->clone());
    CHECK(copy && copy != plugin && bytes_of(*copy) == bytes);
    node.dilation = 3;
    CHECK(bytes_of(*make(creator, node)) != bytes);

    CHECK(!creator->deserializePlugin("short", bytes.data(), bytes.size() - 1));
    CHECK(!creator->deserializePlugin("none", nullptr, bytes.size()));
    for (size_t i = 0; i < bytes.size(); i += sizeof(int32_t)) {
        std::vector<char> damaged = bytes;
        damaged[i + 3] = static_cast<char>(0x80);  // another format, or a negative attribute
        CHECK(!creator->deserializePlugin("damaged", damaged.data(), damaged.size()));
    }
}

void check_shapes_and_types(IPluginCreator* creator) {
    Node node;
    Plugin const plugin = make(creator, node);
    CHECK(plugin->getNbOutputs() == 2 && plugin->initialize() == 0);
    CHECK(plugin->getWorkspaceSize(nullptr, 1, nullptr, 2) == 0);
    DataType const in = DataType::kHALF;
    CHECK(plugin->getOutputDataType(0, &in, 1) == in && plugin->getOutputDataType(1, &in, 1) == in);
    Builder builder;
    Dimension dimension[4];
    DimsExprs shape{4, {&dimension[0], &dimension[1], &dimension[2], &dimension[3]}};
    for (int output = 0; output < 2; ++output) {
        DimsExprs const result = plugin->getOutputDimensions(output, &shape, 1, builder);
        CHECK(result.nbDims == 4);
        for (int i = 0; i < 4; ++i) {
            CHECK(result.d[i] == &dimension[i]);
        }
    }
    CHECK(plugin->getOutputDimensions(2, &shape, 1, builder).nbDims == -1);
    shape.nbDims = 3;
    CHECK(plugin->getOutputDimensions(0, &shape, 1, builder).nbDims == -1);

    for (auto const& entry : all_combinations()) {
        PluginTensorDesc const one = tensor(entry.type, entry.format, 1, 96, 14, 14);
        PluginTensorDesc tensors[3] = {one, one, one};
        for (int i = 0; i < 3; ++i) {
            CHECK(plugin->supportsFormatCombination(i, tensors, 1, 2) == entry.promised);
        }
        tensors[2].type = entry.type == DataType::kHALF ? DataType::kFLOAT : DataType::kHALF;
        CHECK(!plugin->supportsFormatCombination(2, tensors, 1, 2));
    }
}

void check_sizes(IPluginCreator* creator) {
    Node node;  // reflects by 4 pixels
    Plugin const plugin = make(creator, node);
    auto enqueue = [&](PluginTensorDesc const& x, float scale_of_output) {
        void const* const inputs[1] = {nullptr};
        void* const outputs[2] = {nullptr, nullptr};
        PluginTensorDesc descs[2] = {x, x};
        descs[1].scale = scale_of_output;
        return plugin->enqueue(&x, descs, inputs, outputs, nullptr, nullptr);
    };
    PluginTensorDesc empty = tensor(DataType::kINT8, TensorFormat::kCHW32, 0, 96, 5, 5);
    CHECK(enqueue(empty, -1.0F) == 0);
    empty.scale = 0.5F;
    CHECK(enqueue(empty, 0.5F) == 0);
    CHECK(enqueue(empty, 0.25F) != 0);
    CHECK(enqueue(tensor(DataType::kHALF, TensorFormat::kLINEAR, 0, 96, 4, 5), -1.0F) != 0);
    CHECK(enqueue(tensor(DataType::kHALF, TensorFormat::kLINEAR, 1, 96, 5, 5), -1.0F) != 0);  // null pointers
    DynamicPluginTensorDesc x{};
    x.desc = tensor(DataType::kHALF, TensorFormat::kLINEAR, -1, 96, -1, -1);
    x.min = x.max = tensor(DataType::kHALF, TensorFormat::kLINEAR, 1, 96, 5, 5).dims;
    DynamicPluginTensorDesc const outputs[2] = {x, x};
    plugin->configurePlugin(&x, 1, outputs, 2);
    plugin->terminate();
}

}  // namespace

int main(int argc, char** argv) {
    void* const library = open_library(argc, argv);
    CHECK(dlsym(library, "setLoggerFinder"));
    int32_t count = 0;
    auto* const* const creators = exported<IPluginCreator* const*(int32_t&)>(library, "getPluginCreators")(count);
    CHECK(count == 1);
    IPluginCreator* const creator = creators[0];
    CHECK(!std::strcmp(creator->getPluginName(), "AxialShift"));
    CHECK(!std::strcmp(creator->getPluginVersion(), "1"));
    CHECK(!std::strcmp(creator->getPluginNamespace(), "mlpdeploy"));
    CHECK(creator->getFieldNames()->nbFields == 4);
    for (auto const& spoil : bad_nodes()) {
        Node node;
        spoil(node);
        CHECK(!creator->createPlugin("bad", node.get()));
    }
    check_round_trip(creator);
    check_shapes_and_types(creator);
    check_sizes(creator);
    Node node;
    Plugin const plugin = make(creator, node);
    CHECK(!std::strcmp(plugin->getPluginType(), "AxialShift"));
    CHECK(!std::strcmp(plugin->getPluginVersion(), "1"));
    plugin->setPluginNamespace("elsewhere");
    CHECK(!std::strcmp(plugin->getPluginNamespace(), "mlpdeploy"));
    std::puts("OK");
}
