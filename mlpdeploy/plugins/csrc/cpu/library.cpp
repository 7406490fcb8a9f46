// What ONNX Runtime sees: RegisterCustomOps, and the operator mlpdeploy::AxialShiftBlock.
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>

#include "block.h"
#include "host.h"
#include "ort_interface.h"
#include "pages.h"

namespace mlpdeploy::cpu {
namespace {

constexpr char const* kDomain = "mlpdeploy";
constexpr char const* kName = "AxialShiftBlock";
// Of mlpdeploy/ops/axial_shift_block.py: X, the weights, two one-hot kernels that are not needed here, X's shape.
constexpr std::size_t kInputs = 18;
constexpr std::size_t kWeights = 14;
constexpr std::size_t kRank = 4;

// A status of ONNX Runtime on its way to it.
struct Failure {
    OrtStatus* status;
};

void check(OrtStatus* status) {
    if (status != nullptr) throw Failure{status};
}

// Run step(), and turn whatever it throws into a status: nothing may cross the interface.
template <typename Step>
OrtStatus* guard(ort::Table api, Step const& step) noexcept {
    try {
        step();
        return nullptr;
    } catch (Failure const& failure) {
        return failure.status;
    } catch (std::invalid_argument const& error) {
        return ort::CreateStatus::call(api, ort::kInvalidArgument, error.what());
    } catch (std::exception const& error) {
        return ort::CreateStatus::call(api, ort::kFail, error.what());
    } catch (...) {
        return ort::CreateStatus::call(api, ort::kFail, "unknown error");
    }
}

struct Tensor {
    float* data = nullptr;
    std::int64_t sizes[kRank] = {1, 1, 1, 1};
    std::size_t rank = 0;
};

Tensor tensor_of(ort::Table api, OrtValue const* value) {
    OrtTensorTypeAndShapeInfo* created = nullptr;
    check(ort::GetTensorTypeAndShape::call(api, value, &created));
    auto const release = [api](OrtTensorTypeAndShapeInfo* info) {
        ort::ReleaseTensorTypeAndShapeInfo::call(api, info);
    };
    std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> const info(created, release);
    Tensor tensor;
    check(ort::GetDimensionsCount::call(api, created, &tensor.rank));
    if (tensor.rank == 0 || tensor.rank > kRank)
        throw std::invalid_argument("AxialShiftBlock: a tensor with a wrong number of axes");
    check(ort::GetDimensions::call(api, created, tensor.sizes, tensor.rank));
    check(ort::GetTensorMutableData::call(api, const_cast<OrtValue*>(value), reinterpret_cast<void**>(&tensor.data)));
    return tensor;
}

Padding padding_of(char const* name) {
    constexpr char const* kNames[] = {"zero", "circular", "reflect", "replicate"};
    for (int i = 0; i < 4; ++i) {
        if (std::strcmp(name, kNames[i]) == 0) return static_cast<Padding>(i);
    }
    throw std::invalid_argument("AxialShiftBlock: unknown padding");
}

long int_attribute(ort::Table api, OrtKernelInfo const* info, char const* name) {
    std::int64_t value = 0;
    check(ort::KernelInfoGetAttributeInt64::call(api, info, name, &value));
    return static_cast<long>(value);
}

// ONNX Runtime's memory and threads, for one run.
class RunHost final : public Host {
public:
    RunHost(ort::Table api, OrtAllocator* allocator, OrtKernelContext const* context)
        : api_(api), allocator_(allocator), context_(context) {}

    void for_each(long count, void (*task)(void*, std::size_t), void* data) override {
        check(ort::KernelContextParallelFor::call(api_, context_, task, static_cast<std::size_t>(count), 0, data));
    }

    void* allocate(std::size_t bytes) noexcept override {
        void* memory = nullptr;
        if (OrtStatus* status = ort::AllocatorAlloc::call(api_, allocator_, bytes, &memory)) {
            ort::ReleaseStatus::call(api_, status);
            return nullptr;
        }
        return memory;
    }

    void release(void* memory) noexcept override {
        if (OrtStatus* status = ort::AllocatorFree::call(api_, allocator_, memory))
            ort::ReleaseStatus::call(api_, status);
    }

private:
    ort::Table api_;
    OrtAllocator* allocator_;
    OrtKernelContext const* context_;
};

class Kernel {
public:
    Kernel(ort::Table api, OrtKernelInfo const* info, Kernels const& kernels) : api_(api) {
        Tensor weights[kWeights];
        for (std::size_t i = 0; i < kWeights; ++i) {
            int is_constant = 0;
            OrtValue const* value = nullptr;
            check(ort::KernelInfoGetConstantInputTensor::call(api, info, i + 1, &is_constant, &value));
            if (!is_constant || value == nullptr)
                throw std::invalid_argument("AxialShiftBlock: its weights must be constant");
            weights[i] = tensor_of(api, value);
        }
        channels_ = int_attribute(api, info, "channels");
        long const hidden = weights[10].sizes[0];
        check_shapes(weights, hidden);
        Shift shift{int_attribute(api, info, "shift_size"), int_attribute(api, info, "dilation"), Padding::kZero};
        if (shift.size < 1 || shift.size % 2 == 0 || shift.dilation < 1)
            throw std::invalid_argument("AxialShiftBlock: impossible shift");
        reach_ = shift.size / 2 * shift.dilation;
        char padding[16] = {};
        std::size_t size = sizeof padding;
        check(ort::KernelInfoGetAttributeString::call(api, info, "padding", padding, &size));
        shift.padding = padding_of(padding);
        padding_ = shift.padding;
        float epsilon = 0;
        check(ort::KernelInfoGetAttributeFloat::call(api, info, "epsilon", &epsilon));
        float const* w[kWeights];
        for (std::size_t i = 0; i < kWeights; ++i) w[i] = weights[i].data;
        block_ = std::make_unique<Block>(
            kernels, channels_, hidden, shift, epsilon,
            BlockWeights{w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13]});
        for (Tensor const& weight : weights) {
            std::int64_t const count = weight.sizes[0] * weight.sizes[1] * weight.sizes[2] * weight.sizes[3];
            release_file_pages(weight.data, static_cast<std::size_t>(count) * sizeof(float));
        }
        check(ort::KernelInfoGetAllocator::call(api, info, ort::kDefaultMemory, &allocator_));
    }
    ~Kernel() {
        if (allocator_ != nullptr) ort::ReleaseAllocator::call(api_, allocator_);
    }
    Kernel(Kernel const&) = delete;
    Kernel& operator=(Kernel const&) = delete;

    OrtStatus* compute(OrtKernelContext* context) const noexcept {
        return guard(api_, [&] {
            OrtValue const* input = nullptr;
            check(ort::KernelContextGetInput::call(api_, context, 0, &input));
            Tensor const x = tensor_of(api_, input);
            if (x.rank != kRank || x.sizes[1] != channels_)
                throw std::invalid_argument("AxialShiftBlock: X does not fit the weights");
            check_size(x.sizes[2]);
            check_size(x.sizes[3]);
            OrtValue* output = nullptr;
            check(ort::KernelContextGetOutput::call(api_, context, 0, x.sizes, kRank, &output));
            RunHost host(api_, allocator_, context);
            block_->run(host, x.data, tensor_of(api_, output).data, x.sizes[0], x.sizes[2], x.sizes[3]);
        });
    }

private:
    void check_shapes(Tensor const (&weights)[kWeights], long hidden) const {
        // (out, in) of each matrix and (out) of each vector, in the operator's order.
        long const c = channels_;
        long const wanted[kWeights][2] = {{c, c}, {c, 1}, {c, 1}, {c, 1},      {c, c},      {c, 1},      {c, c},
                                          {c, 1}, {c, c}, {c, 1}, {hidden, c}, {hidden, 1}, {c, hidden}, {c, 1}};
        for (std::size_t i = 0; i < kWeights; ++i) {
            auto const& sizes = weights[i].sizes;
            if (c < 1 || hidden < 1 || sizes[0] != wanted[i][0] || sizes[1] != wanted[i][1] || sizes[2] != 1 ||
                sizes[3] != 1) {
                throw std::invalid_argument("AxialShiftBlock: a weight of a wrong shape");
            }
        }
    }

    // Padding that reads pixels needs so many; ONNX's Pad refuses the same.
    void check_size(std::int64_t size) const {
        if ((padding_ == Padding::kReflect && reach_ >= size) || (padding_ == Padding::kCircular && reach_ > size)) {
            throw std::invalid_argument("AxialShiftBlock: the shift reaches farther than the image");
        }
    }

    ort::Table api_;
    OrtAllocator* allocator_ = nullptr;
    long channels_ = 0;
    long reach_ = 0;
    Padding padding_ = Padding::kZero;
    std::unique_ptr<Block> block_;
};

Kernels const* chosen() {
    static Kernels const* const kernels = [] {
        char const* named = std::getenv("MLPDEPLOY_NATIVE");
        return choose_kernels(named == nullptr || named[0] == '\0' ? nullptr : named);
    }();
    return kernels;
}

ort::CustomOp make_op() {
    ort::CustomOp op{};
    op.version = ort::kVersion;
    op.name = [](ort::CustomOp const*) { return kName; };
    op.provider = [](ort::CustomOp const*) -> char const* { return nullptr; };  // the CPU's
    op.input_type = [](ort::CustomOp const*, std::size_t i) { return i + 1 == kInputs ? ort::kInt64 : ort::kFloat; };
    op.input_count = [](ort::CustomOp const*) { return kInputs; };
    op.output_type = [](ort::CustomOp const*, std::size_t) { return ort::kFloat; };
    op.output_count = [](ort::CustomOp const*) { return std::size_t{1}; };
    op.input_characteristic =
        op.output_characteristic = [](ort::CustomOp const*, std::size_t) { return ort::kRequired; };
    op.input_memory = [](ort::CustomOp const*, std::size_t) { return ort::kDefaultMemory; };
    op.first_version = op.last_version = [](ort::CustomOp const*) { return 1; };
    op.create_v2 = [](ort::CustomOp const*, ort::Table api, OrtKernelInfo const* info, void** kernel) {
        return guard(api, [&] { *kernel = new Kernel(api, info, *chosen()); });
    };
    op.compute_v2 = [](void* kernel, OrtKernelContext* context) {
        return static_cast<Kernel const*>(kernel)->compute(context);
    };
    op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    return op;
}

}  // namespace
}  // namespace mlpdeploy::cpu

// Called by ONNX Runtime when a session registers this library.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, mlpdeploy::cpu::ort::ApiBase const* base) {
    using namespace mlpdeploy::cpu;
    ort::Table const api = base->get_api(ort::kVersion);
    if (api == nullptr) return nullptr;  // an older ONNX Runtime, which has no way to say why: it runs the functions
    return guard(api, [&] {
        if (chosen() == nullptr) return;  // not for this processor: the functions run
        // Sessions share the domain, and keep pointers into it: it lives as long as the process.
        static ort::CustomOp const op = make_op();
        static OrtCustomOpDomain* const domain = [api] {
            OrtCustomOpDomain* created = nullptr;
            check(ort::CreateCustomOpDomain::call(api, kDomain, &created));
            check(ort::CustomOpDomainAdd::call(api, created, &op));
            return created;
        }();
        check(ort::AddCustomOpDomain::call(api, options, domain));
    });
}

// The name of the kernels that this processor runs, or null.
extern "C" __attribute__((visibility("default"))) const char* mlpdeploy_cpu_kernels() {
    mlpdeploy::cpu::Kernels const* kernels = mlpdeploy::cpu::chosen();
    return kernels == nullptr ? nullptr : kernels->name;
}
