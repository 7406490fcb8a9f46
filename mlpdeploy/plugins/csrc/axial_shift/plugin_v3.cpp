// AxialShift for TensorRT 10 and newer.
#include "face.h"

#if !MLPDEPLOY_PLUGIN_V2

#include "guard.h"
#include "plugin_core.h"

namespace mlpdeploy {
namespace {

using namespace nvinfer1;

constexpr int32_t kFAILED = -1;

class AxialShiftV3 final : public IPluginV3,
                           public IPluginV3OneCore,
                           public IPluginV3OneBuild,
                           public IPluginV3OneRuntime {
public:
    explicit AxialShiftV3(AxialShiftAttributes const& attributes)
        : mAttributes(attributes), mFields(fields_of(mAttributes)), mTimingCacheId(timing_cache_id(mAttributes)) {}

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
            case PluginCapabilityType::kCORE:
                return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD:
                return static_cast<IPluginV3OneBuild*>(this);
            case PluginCapabilityType::kRUNTIME:
                return static_cast<IPluginV3OneRuntime*>(this);
            default:
                return nullptr;
        }
    }

    IPluginV3* clone() noexcept override {
        return guard<IPluginV3*>("AxialShift::clone", nullptr, [&] { return new AxialShiftV3(mAttributes); });
    }

    // Core
    AsciiChar const* getPluginName() const noexcept override { return kPLUGIN_NAME; }
    AsciiChar const* getPluginVersion() const noexcept override { return kPLUGIN_VERSION; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kPLUGIN_NAMESPACE; }

    // Build
    int32_t getNbOutputs() const noexcept override { return kOUTPUTS; }

    int32_t getOutputDataTypes(DataType* types, int32_t outputs, DataType const* input_types,
                               int32_t inputs) const noexcept override {
        return guard("AxialShift::getOutputDataTypes", kFAILED, [&] {
            check_counts(inputs, outputs);
            types[kY_W] = types[kY_H] = input_types[kX];
            return 0;
        });
    }

    int32_t getOutputShapes(DimsExprs const* input_shapes, int32_t inputs, DimsExprs const*, int32_t,
                            DimsExprs* output_shapes, int32_t outputs, IExprBuilder&) noexcept override {
        return guard("AxialShift::getOutputShapes", kFAILED, [&] {
            check_counts(inputs, outputs);
            if (input_shapes[kX].nbDims != kRANK) {
                return kFAILED;
            }
            output_shapes[kY_W] = output_shapes[kY_H] = input_shapes[kX];
            return 0;
        });
    }

    bool supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors, int32_t inputs,
                                   int32_t outputs) noexcept override {
        return guard("AxialShift::supportsFormatCombination", false, [&] {
            check_counts(inputs, outputs);
            return supports(position, tensors[position].desc, tensors[kX].desc);
        });
    }

    int32_t configurePlugin(DynamicPluginTensorDesc const* in, int32_t inputs, DynamicPluginTensorDesc const*,
                            int32_t outputs) noexcept override {
        return guard("AxialShift::configurePlugin", kFAILED, [&] {
            check_counts(inputs, outputs);
            check_profile(mAttributes, in[kX]);
            return 0;
        });
    }

    size_t getWorkspaceSize(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                            int32_t) const noexcept override {
        return 0;
    }

    char const* getTimingCacheID() noexcept override { return mTimingCacheId.c_str(); }

    // Runtime
    int32_t onShapeChange(PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const*,
                          int32_t outputs) noexcept override {
        return guard("AxialShift::onShapeChange", kFAILED, [&] {
            check_counts(inputs, outputs);
            params_from(mAttributes, in[kX]);
            return 0;
        });
    }

    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
                    void* const* outputs, void*, cudaStream_t stream) noexcept override {
        return guard("AxialShift::enqueue", kFAILED, [&] {
            run_axial_shift(mAttributes, in[kX], inputs, outputs, stream);
            return 0;
        });
    }

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
        return &mCollection;
    }

private:
    AxialShiftAttributes const mAttributes;
    std::vector<PluginField> const mFields;  // points into mAttributes
    std::string const mTimingCacheId;
    PluginFieldCollection mCollection{};
};

class AxialShiftCreatorV3 final : public IPluginCreatorV3One {
public:
    AsciiChar const* getPluginName() const noexcept override { return kPLUGIN_NAME; }
    AsciiChar const* getPluginVersion() const noexcept override { return kPLUGIN_VERSION; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kPLUGIN_NAMESPACE; }
    PluginFieldCollection const* getFieldNames() noexcept override { return &mCollection; }

    IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const* fields, TensorRTPhase) noexcept override {
        return guard<IPluginV3*>("AxialShift::createPlugin", nullptr,
                                 [&] { return new AxialShiftV3(attributes_from_fields(fields)); });
    }

private:
    std::vector<PluginField> const mFields = field_names();
    PluginFieldCollection const mCollection{static_cast<int32_t>(mFields.size()), mFields.data()};
};

}  // namespace

Creator* axial_shift_creator() {
    static AxialShiftCreatorV3 creator;
    return &creator;
}

}  // namespace mlpdeploy

#endif
