// Drives every method of the IPluginV3 but the launch itself, through the library's public entry points.
#include <NvInferRuntime.h>

#include <cstring>
#include <string>

#include "harness.h"
#include "harness_fields.h"

using namespace nvinfer1;

namespace {

struct Recorder : ILogger, ILoggerFinder {
    void log(Severity severity, AsciiChar const* text) noexcept override {
        errors += severity == Severity::kERROR;
        last = text;
    }
    ILogger* findLogger() override { return this; }
    int errors = 0;
    std::string last;
};
Recorder recorder;

/// An expression builder and dimensions that the plugin passes on and never opens.
struct Builder : IExprBuilder {};
struct Dimension : IDimensionExpr {};

struct Faces {
    explicit Faces(IPluginV3* owner)
        : plugin(owner),
          core(static_cast<IPluginV3OneCore*>(owner->getCapabilityInterface(PluginCapabilityType::kCORE))),
          build(static_cast<IPluginV3OneBuild*>(owner->getCapabilityInterface(PluginCapabilityType::kBUILD))),
          runtime(static_cast<IPluginV3OneRuntime*>(owner->getCapabilityInterface(PluginCapabilityType::kRUNTIME))) {
        CHECK(core && build && runtime);
        CHECK(!owner->getCapabilityInterface(static_cast<PluginCapabilityType>(17)));
    }
    ~Faces() { delete plugin; }
    Faces(Faces const&) = delete;
    Faces& operator=(Faces const&) = delete;
    IPluginV3* plugin;
    IPluginV3OneCore* core;
    IPluginV3OneBuild* build;
    IPluginV3OneRuntime* runtime;
};

IPluginV3* make(IPluginCreatorV3One* creator, PluginFieldCollection const* fields) {
    IPluginV3* const plugin = creator->createPlugin("node", fields, TensorRTPhase::kBUILD);
    CHECK(plugin);
    return plugin;
}

std::string cache_id(IPluginCreatorV3One* creator, Node& node) {
    Faces const faces(make(creator, node.get()));
    CHECK(faces.build->getTimingCacheID());
    return faces.build->getTimingCacheID();
}

void check_attributes(IPluginCreatorV3One* creator) {
    for (auto const& spoil : bad_nodes()) {
        Node node;
        spoil(node);
        int const before = recorder.errors;
        CHECK(!creator->createPlugin("bad", node.get(), TensorRTPhase::kBUILD));
        CHECK(!creator->createPlugin("bad", node.get(), TensorRTPhase::kRUNTIME));
        CHECK(recorder.errors == before + 2);
        CHECK(recorder.last.find("mlpdeploy AxialShift::createPlugin: ") == 0);
    }
    CHECK(!creator->createPlugin("none", nullptr, TensorRTPhase::kBUILD));

    Node node;
    int64_t wide = 7;
    node.fields[0] = {"shift_size", &wide, PluginFieldType::kINT64, 1};
    delete make(creator, node.get());
    wide = int64_t{1} << 32 | 5;
    CHECK(!creator->createPlugin("wide", node.get(), TensorRTPhase::kBUILD));
    for (char const* name : {"zero", "circular", "reflect", "replicate"}) {
        Node good;
        good.set_padding(name);
        good.fields.push_back({"plugin_version", "1", PluginFieldType::kCHAR, 1});
        good.fields.push_back({"plugin_namespace", "mlpdeploy", PluginFieldType::kCHAR, 9});
        delete make(creator, good.get());
        ++good.fields[2].length;  // the closing zero counted
        delete make(creator, good.get());
    }

    Node other;
    std::string const id = cache_id(creator, other);
    other.shift_size = 7;
    CHECK(cache_id(creator, other) != id);
    other.shift_size = 5;
    CHECK(cache_id(creator, other) == id);
    other.dilation = 3;
    CHECK(cache_id(creator, other) != id);
    other.dilation = 2;
    other.set_padding("zero");
    CHECK(cache_id(creator, other) != id);
}

void check_round_trip(IPluginCreatorV3One* creator) {
    Node node;
    Faces const faces(make(creator, node.get()));
    PluginFieldCollection const* const written = faces.runtime->getFieldsToSerialize();
    CHECK(written->nbFields == 4);
    CHECK(*static_cast<int32_t const*>(written->fields[0].data) == 5);
    CHECK(*static_cast<int32_t const*>(written->fields[1].data) == 2);
    CHECK(std::string(static_cast<char const*>(written->fields[2].data), 7) == "reflect");
    CHECK(written->fields[2].length == 7);
    CHECK(*static_cast<int32_t const*>(written->fields[3].data) == 96);
    Faces const again(creator->createPlugin("node", written, TensorRTPhase::kRUNTIME));
    CHECK(std::string(again.build->getTimingCacheID()) == faces.build->getTimingCacheID());

    IPluginV3* copy = nullptr;
    {
        Faces const original(make(creator, node.get()));
        copy = original.plugin->clone();
        IPluginV3* const attached = original.runtime->attachToContext(nullptr);
        CHECK(copy && attached && copy != original.plugin && attached != original.plugin && attached != copy);
        delete attached;
    }
    Faces const survivor(copy);  // its fields must not point into the original, which is gone
    PluginFieldCollection const* const kept = survivor.runtime->getFieldsToSerialize();
    CHECK(*static_cast<int32_t const*>(kept->fields[0].data) == 5);
    CHECK(std::string(survivor.build->getTimingCacheID()) == faces.build->getTimingCacheID());
}

void check_shapes_and_types(IPluginCreatorV3One* creator) {
    Node node;
    Faces const faces(make(creator, node.get()));
    CHECK(faces.build->getNbOutputs() == 2);
    CHECK(faces.build->getWorkspaceSize(nullptr, 1, nullptr, 2) == 0);
    DataType const in = DataType::kHALF;
    DataType types[2] = {DataType::kFLOAT, DataType::kFLOAT};
    CHECK(faces.build->getOutputDataTypes(types, 2, &in, 1) == 0);
    CHECK(types[0] == DataType::kHALF && types[1] == DataType::kHALF);
    CHECK(faces.build->getOutputDataTypes(types, 1, &in, 1) != 0);

    Builder builder;
    Dimension dimension[4];
    DimsExprs shape{4, {&dimension[0], &dimension[1], &dimension[2], &dimension[3]}};
    DimsExprs shapes[2]{};
    CHECK(faces.build->getOutputShapes(&shape, 1, nullptr, 0, shapes, 2, builder) == 0);
    for (auto const& output : shapes) {
        CHECK(output.nbDims == 4);
        for (int i = 0; i < 4; ++i) {
            CHECK(output.d[i] == &dimension[i]);
        }
    }
    shape.nbDims = 3;
    CHECK(faces.build->getOutputShapes(&shape, 1, nullptr, 0, shapes, 2, builder) != 0);

    int promised = 0;
    for (auto const& entry : all_combinations()) {
        DynamicPluginTensorDesc tensors[3]{};
        for (auto& one : tensors) {
            one.desc = tensor(entry.type, entry.format, 1, 96, 14, 14);
        }
        for (int i = 0; i < 3; ++i) {
            CHECK(faces.build->supportsFormatCombination(i, tensors, 1, 2) == entry.promised);
        }
        promised += entry.promised;
        tensors[2].desc.type = entry.type == DataType::kHALF ? DataType::kFLOAT : DataType::kHALF;
        CHECK(!faces.build->supportsFormatCombination(2, tensors, 1, 2));
        tensors[1].desc.format = entry.format == TensorFormat::kLINEAR ? TensorFormat::kHWC : TensorFormat::kLINEAR;
        CHECK(!faces.build->supportsFormatCombination(1, tensors, 1, 2));
        CHECK(!faces.build->supportsFormatCombination(3, tensors, 1, 2));
    }
    CHECK(promised == 9);
}

void check_sizes(IPluginCreatorV3One* creator) {
    Node node;  // reflects by 4 pixels
    Faces const faces(make(creator, node.get()));
    auto change = [&](PluginTensorDesc const& x) {
        PluginTensorDesc const outputs[2] = {x, x};
        return faces.runtime->onShapeChange(&x, 1, outputs, 2);
    };
    CHECK(change(tensor(DataType::kHALF, TensorFormat::kHWC8, 8, 96, 5, 5)) == 0);
    CHECK(change(tensor(DataType::kHALF, TensorFormat::kHWC8, 0, 96, 5, 5)) == 0);
    CHECK(change(tensor(DataType::kHALF, TensorFormat::kHWC8, 8, 96, 4, 5)) != 0);
    CHECK(change(tensor(DataType::kHALF, TensorFormat::kHWC8, 8, 95, 5, 5)) != 0);
    CHECK(change(tensor(DataType::kINT32, TensorFormat::kLINEAR, 8, 96, 5, 5)) != 0);
    PluginTensorDesc flat = tensor(DataType::kHALF, TensorFormat::kLINEAR, 8, 96, 5, 5);
    flat.dims.nbDims = 3;
    CHECK(change(flat) != 0);

    auto configure = [&](int smallest) {
        DynamicPluginTensorDesc x{};
        x.desc = tensor(DataType::kHALF, TensorFormat::kLINEAR, -1, 96, -1, -1);
        x.min = tensor(DataType::kHALF, TensorFormat::kLINEAR, 1, 96, smallest, smallest).dims;
        x.opt = x.max = tensor(DataType::kHALF, TensorFormat::kLINEAR, 8, 96, 56, 56).dims;
        DynamicPluginTensorDesc const outputs[2] = {x, x};
        return faces.build->configurePlugin(&x, 1, outputs, 2);
    };
    CHECK(configure(5) == 0);
    CHECK(configure(-1) == 0);  // not known yet
    CHECK(configure(4) != 0);

    // What needs no GPU of enqueue: refused before the launch, launched without a driver, launched with nothing to do.
    auto enqueue = [&](PluginTensorDesc const& x, void* memory) {
        void const* const inputs[1] = {memory};
        void* const outputs[2] = {memory, memory};
        PluginTensorDesc const descs[2] = {x, x};
        return faces.runtime->enqueue(&x, descs, inputs, outputs, nullptr, nullptr);
    };
    alignas(16) static char memory[1024];
    CHECK(enqueue(tensor(DataType::kHALF, TensorFormat::kLINEAR, 1, 96, 4, 4), memory) != 0);
    CHECK(enqueue(tensor(DataType::kINT32, TensorFormat::kLINEAR, 1, 96, 5, 5), memory) != 0);
    CHECK(enqueue(tensor(DataType::kHALF, TensorFormat::kLINEAR, 1, 96, 5, 5), nullptr) != 0);
    CHECK(enqueue(tensor(DataType::kHALF, TensorFormat::kLINEAR, 0, 96, 5, 5), nullptr) == 0);
    CHECK(recorder.last.find("the kernel was not launched: ") != std::string::npos);
}

}  // namespace

int main(int argc, char** argv) {
    void* const library = open_library(argc, argv);
    exported<void(ILoggerFinder*)>(library, "setLoggerFinder")(&recorder);
    int32_t count = 0;
    auto* const* const creators = exported<IPluginCreatorInterface* const*(int32_t&)>(library, "getCreators")(count);
    CHECK(count == 1);
    CHECK(!std::strcmp(creators[0]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE"));
    auto* const creator = static_cast<IPluginCreatorV3One*>(creators[0]);
    CHECK(!std::strcmp(creator->getPluginName(), "AxialShift"));
    CHECK(!std::strcmp(creator->getPluginVersion(), "1"));
    CHECK(!std::strcmp(creator->getPluginNamespace(), "mlpdeploy"));
    CHECK(creator->getFieldNames()->nbFields == 4);
    check_attributes(creator);
    check_round_trip(creator);
    check_shapes_and_types(creator);
    check_sizes(creator);
    Node node;
    Faces const faces(make(creator, node.get()));
    CHECK(!std::strcmp(faces.core->getPluginName(), "AxialShift"));
    CHECK(!std::strcmp(faces.core->getPluginVersion(), "1"));
    CHECK(!std::strcmp(faces.core->getPluginNamespace(), "mlpdeploy"));
    std::puts("OK");
}
