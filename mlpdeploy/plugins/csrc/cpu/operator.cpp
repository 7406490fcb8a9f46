#include "operator.h"

#include <cstdlib>

#include "memory.h"
#include "spares.h"

namespace mlpdeploy::cpu {
namespace {

Tensor tensor_of(ort::Table api, OrtValue const* value) {
    OrtTensorTypeAndShapeInfo* created = nullptr;
    check(ort::GetTensorTypeAndShape::call(api, value, &created));
    auto const release = [api](OrtTensorTypeAndShapeInfo* info) {
        ort::ReleaseTensorTypeAndShapeInfo::call(api, info);
    };
    std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> const info(created, release);
    Tensor tensor;
    check(ort::GetDimensionsCount::call(api, created, &tensor.rank));
    if (tensor.rank == 0 || tensor.rank > kRank) throw std::invalid_argument("a tensor with a wrong number of axes");
    check(ort::GetDimensions::call(api, created, tensor.sizes, tensor.rank));
    check(ort::GetTensorMutableData::call(api, const_cast<OrtValue*>(value), reinterpret_cast<void**>(&tensor.data)));
    return tensor;
}

}  // namespace

bool Tensor::is(std::initializer_list<std::int64_t> wanted) const {
    for (std::size_t axis = 0; axis < kRank; ++axis) {
        if (sizes[axis] != (axis < wanted.size() ? wanted.begin()[axis] : 1)) return false;
    }
    return true;
}

Memory::Memory(ort::Table api, OrtKernelInfo const* info) : api_(api) {
    check(ort::KernelInfoGetAllocator::call(api, info, ort::kDefaultMemory, &allocator_));
}

Memory::~Memory() { ort::ReleaseAllocator::call(api_, allocator_); }

long Node::integer(char const* name) const {
    std::int64_t value = 0;
    check(ort::KernelInfoGetAttributeInt64::call(api_, info_, name, &value));
    return static_cast<long>(value);
}

float Node::real(char const* name) const {
    float value = 0;
    check(ort::KernelInfoGetAttributeFloat::call(api_, info_, name, &value));
    return value;
}

std::string Node::text(char const* name) const {
    char value[16] = {};
    std::size_t size = sizeof value;
    check(ort::KernelInfoGetAttributeString::call(api_, info_, name, value, &size));
    return value;
}

Scale Node::scale(char const* name) const {
    std::string const suffix = std::string("_") + name;
    Scale const scale{real(("step" + suffix).c_str()), static_cast<float>(integer(("zero" + suffix).c_str()))};
    if (!(scale.step > 0) || scale.zero < 0 || scale.zero > 255) throw std::invalid_argument("impossible scale");
    return scale;
}

void Node::read_weights(Tensor* weights, std::size_t count) const {
    for (std::size_t i = 0; i < count; ++i) {
        int is_constant = 0;
        OrtValue const* value = nullptr;
        check(ort::KernelInfoGetConstantInputTensor::call(api_, info_, i + 1, &is_constant, &value));
        if (!is_constant || value == nullptr) throw std::invalid_argument("its weights must be constant");
        weights[i] = tensor_of(api_, value);
    }
}

void release_weight(Tensor const& weight, std::size_t value_bytes) noexcept {
    release_file_pages(weight.data, static_cast<std::size_t>(weight.count()) * value_bytes);
}

std::vector<float> floats_of(Tensor const& tensor, Operands operands) {
    std::vector<float> values(static_cast<std::size_t>(tensor.count()));
    if (operands == Operands::kInt8) {
        std::copy_n(reinterpret_cast<signed char const*>(tensor.data), values.size(), values.begin());
        return values;
    }
    auto const* const from = reinterpret_cast<std::uint16_t const*>(tensor.data);
    for (std::size_t i = 0; i < values.size(); ++i) {
        std::uint32_t const bits = static_cast<std::uint32_t>(from[i]) << 16;
        std::memcpy(&values[i], &bits, sizeof bits);
    }
    return values;
}

Tensor Run::input() const {
    OrtValue const* value = nullptr;
    check(ort::KernelContextGetInput::call(api_, context_, 0, &value));
    return tensor_of(api_, value);
}

Tensor Run::output(Tensor const& like) const {
    OrtValue* value = nullptr;
    check(ort::KernelContextGetOutput::call(api_, context_, 0, like.sizes, like.rank, &value));
    return tensor_of(api_, value);
}

void Run::for_each(long count, void (*task)(void*, std::size_t), void* data) {
    check(ort::KernelContextParallelFor::call(api_, context_, task, static_cast<std::size_t>(count), 0, data));
}

// What a task needs is small, and asked for many times a run: ONNX Runtime's memory has one lock for all threads.
void* Run::allocate(std::size_t bytes) noexcept {
    if (bytes <= Spares::kLargest) return Spares::of_this_thread().take(bytes);
    void* memory = nullptr;
    if (OrtStatus* status = ort::AllocatorAlloc::call(api_, allocator_, bytes, &memory)) {
        ort::ReleaseStatus::call(api_, status);
        return nullptr;
    }
    return memory;
}

void Run::release(void* memory, std::size_t bytes) noexcept {
    if (bytes <= Spares::kLargest) return Spares::of_this_thread().give(memory, bytes);
    if (OrtStatus* status = ort::AllocatorFree::call(api_, allocator_, memory)) ort::ReleaseStatus::call(api_, status);
}

Kernels const* chosen_kernels(Operands operands) {
    static char const* const named = std::getenv("MLPDEPLOY_NATIVE");
    static char const* const only = named == nullptr || named[0] == '\0' ? nullptr : named;
    static Kernels const* const of[] = {choose_kernels(Operands::kFloat, only),
                                        choose_kernels(Operands::kBfloat16, only),
                                        choose_kernels(Operands::kInt8, only)};
    return of[static_cast<int>(operands)];
}

}  // namespace mlpdeploy::cpu
