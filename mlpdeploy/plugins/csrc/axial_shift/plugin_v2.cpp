// AxialShift for TensorRT 8.6, the newest that JetPack 6.0 has.
#include "face.h"

#if MLPDEPLOY_PLUGIN_V2

#include <cstring>
#include <stdexcept>

#include "guard.h"
#include "plugin_core.h"

namespace mlpdeploy {
namespace {

using namespace nvinfer1;

constexpr int32_t kFAILED = -1;

/// What is written into a plan.
struct Serialized {
    uint32_t format;
    int32_t shift_size;
    int32_t dilation;
    int32_t padding;
    int32_t channels;
};
constexpr uint32_t kFORMAT_1 = 0x31534158;  // "XAS1"

class AxialShiftV2 final : public IPluginV2DynamicExt {
public:
    explicit AxialShiftV2(AxialShiftAttributes const& attributes) : mAttributes(attributes) {}

    AsciiChar const* getPluginType() const noexcept override { return kPLUGIN_NAME; }
    AsciiChar const* getPluginVersion() const noexcept override { return kPLUGIN_VERSION; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kPLUGIN_NAMESPACE; }
    void setPluginNamespace(AsciiChar const*) noexcept override {}  // there is one namespace that it is found under
    int32_t getNbOutputs() const noexcept override { return kOUTPUTS; }
    int32_t initialize() noexcept override { return 0; }
    void terminate() noexcept override {}
    void destroy() noexcept override { delete this; }

    IPluginV2DynamicExt* clone() const noexcept override {
        return guard<IPluginV2DynamicExt*>("AxialShift::clone", nullptr, [&] { return new AxialShiftV2(mAttributes); });
    }

    DataType getOutputDataType(int32_t, DataType const* types, int32_t) const noexcept override { return types[kX]; }

    DimsExprs getOutputDimensions(int32_t output, DimsExprs const* shapes, int32_t inputs,
                                  IExprBuilder&) noexcept override {
        return guard("AxialShift::getOutputDimensions", DimsExprs{-1, {}}, [&] {
            if (inputs != kINPUTS || output < 0 || output >= kOUTPUTS || shapes[kX].nbDims != kRANK) {
                throw std::invalid_argument("wanted one input of four dimensions, and output 0 or 1");
            }
            return shapes[kX];
        });
    }

    bool supportsFormatCombination(int32_t position, PluginTensorDesc const* tensors, int32_t inputs,
                                   int32_t outputs) noexcept override {
        return guard("AxialShift::supportsFormatCombination", false, [&] {
            check_counts(inputs, outputs);
            return supports(position, tensors[position], tensors[kX]);
        });
    }

    void configurePlugin(DynamicPluginTensorDesc const* in, int32_t inputs, DynamicPluginTensorDesc const*,
                         int32_t outputs) noexcept override {
        // This interface cannot refuse here: the reason is logged, and enqueue
        // fails.
        guard("AxialShift::configurePlugin", kFAILED, [&] {
            check_counts(inputs, outputs);
            check_profile(mAttributes, in[kX]);
            return 0;
        });
    }

    size_t getWorkspaceSize(PluginTensorDesc const*, int32_t, PluginTensorDesc const*,
                            int32_t) const noexcept override {
        return 0;
    }

    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const* out, void const* const* inputs,
                    void* const* outputs, void*, cudaStream_t stream) noexcept override {
        return guard("AxialShift::enqueue", kFAILED, [&] {
            check_scales(in[kX], out[kY_W]);
            check_scales(in[kX], out[kY_H]);
            run_axial_shift(mAttributes, in[kX], inputs, outputs, stream);
            return 0;
        });
    }

    size_t getSerializationSize() const noexcept override { return sizeof(Serialized); }

    void serialize(void* buffer) const noexcept override {
        Serialized const data{kFORMAT_1, mAttributes.shift_size, mAttributes.dilation,
                              static_cast<int32_t>(mAttributes.padding), mAttributes.channels};
        std::memcpy(buffer, &data, sizeof(data));
    }

private:
    /// A calibrator could give the outputs a scale of their own; moving bytes
    /// would then change values.
    static void check_scales(PluginTensorDesc const& in, PluginTensorDesc const& out) {
        if (in.type == DataType::kINT8 && in.scale > 0 && out.scale > 0 && in.scale != out.scale) {
            throw std::invalid_argument(
                "the INT8 scales of input and output differ; "
                "quantize with Q/DQ nodes");
        }
    }

    AxialShiftAttributes const mAttributes;
};

class AxialShiftCreatorV2 final : public IPluginCreator {
public:
    AsciiChar const* getPluginName() const noexcept override { return kPLUGIN_NAME; }
    AsciiChar const* getPluginVersion() const noexcept override { return kPLUGIN_VERSION; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kPLUGIN_NAMESPACE; }
    void setPluginNamespace(AsciiChar const*) noexcept override {}
    PluginFieldCollection const* getFieldNames() noexcept override { return &mCollection; }

    IPluginV2* createPlugin(AsciiChar const*, PluginFieldCollection const* fields) noexcept override {
        return guard<IPluginV2*>("AxialShift::createPlugin", nullptr,
                                 [&] { return new AxialShiftV2(attributes_from_fields(fields)); });
    }

    IPluginV2* deserializePlugin(AsciiChar const*, void const* data, size_t length) noexcept override {
        return guard<IPluginV2*>("AxialShift::deserializePlugin", nullptr, [&] {
            Serialized read{};
            if (data == nullptr || length != sizeof(read)) {
                throw std::invalid_argument("the plan holds data of another length");
            }
            std::memcpy(&read, data, sizeof(read));
            if (read.format != kFORMAT_1) {
                throw std::invalid_argument("the plan was written by another version of this plugin");
            }
            AxialShiftAttributes const attributes{read.shift_size, read.dilation, static_cast<Padding>(read.padding),
                                                  read.channels};
            check_attributes(attributes);
            return new AxialShiftV2(attributes);
        });
    }

private:
    std::vector<PluginField> const mFields = field_names();
    PluginFieldCollection const mCollection{static_cast<int32_t>(mFields.size()), mFields.data()};
};

}  // namespace

Creator* axial_shift_creator() {
    static AxialShiftCreatorV2 creator;
    return &creator;
}

}  // namespace mlpdeploy

#endif
