// What an operator needs of ONNX Runtime: its attributes and weights, the tensors and memory of a run, and errors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "host.h"
#include "kernels.h"
#include "ort_interface.h"

namespace mlpdeploy::cpu {

constexpr std::size_t kRank = 4;  // axes of the largest tensor

// A status of ONNX Runtime on its way to it.
struct Failure {
    OrtStatus* status;
};

inline void check(OrtStatus* status) {
    if (status != nullptr) throw Failure{status};
}

// Run step(), and turn whatever it throws into a status that begins with `who`: nothing may cross the interface.
template <typename Step>
OrtStatus* guard(ort::Table api, char const* who, Step const& step) noexcept {
    auto const status = [=](int code, char const* what) noexcept {
        char text[256];
        std::size_t const length = std::min(std::strlen(who), sizeof text / 2);
        std::memcpy(text, who, length);
        std::memcpy(text + length, ": ", 3);
        std::strncat(text, what, sizeof text - length - 3);
        return ort::CreateStatus::call(api, code, text);
    };
    try {
        step();
        return nullptr;
    } catch (Failure const& failure) {
        return failure.status;
    } catch (std::invalid_argument const& error) {
        return status(ort::kInvalidArgument, error.what());
    } catch (std::exception const& error) {
        return status(ort::kFail, error.what());
    } catch (...) {
        return status(ort::kFail, "unknown error");
    }
}

struct Tensor {
    float* data = nullptr;  // or of another type, where a weight has one
    std::int64_t sizes[kRank] = {1, 1, 1, 1};
    std::size_t rank = 0;

    std::int64_t count() const { return sizes[0] * sizes[1] * sizes[2] * sizes[3]; }
    // Whether the sizes are these, with ones behind them.
    bool is(std::initializer_list<std::int64_t> wanted) const;
};

// ONNX Runtime's memory; it outlives the runs.
class Memory {
public:
    Memory(ort::Table api, OrtKernelInfo const* info);
    ~Memory();
    Memory(Memory const&) = delete;
    Memory& operator=(Memory const&) = delete;

    OrtAllocator* get() const { return allocator_; }

private:
    ort::Table api_;
    OrtAllocator* allocator_ = nullptr;
};

// A node of a file: what a kernel is made of. All methods throw Failure or std::invalid_argument.
class Node {
public:
    Node(ort::Table api, OrtKernelInfo const* info) : api_(api), info_(info) {}

    ort::Table api() const { return api_; }
    OrtKernelInfo const* info() const { return info_; }
    long integer(char const* name) const;
    float real(char const* name) const;
    std::string text(char const* name) const;  // of at most 15 characters
    // The attributes step_NAME and zero_NAME: what 8-bit operands stand for.
    Scale scale(char const* name) const;
    // The constant inputs [1, 1 + count): weights come behind X.
    void read_weights(Tensor* weights, std::size_t count) const;

private:
    ort::Table api_;
    OrtKernelInfo const* info_;
};

// Let go of mapped weights of so many bytes each that have been copied.
void release_weight(Tensor const& weight, std::size_t value_bytes) noexcept;

// The type of a node's matrices, and the bytes of one of their values.
constexpr int matrix_type(Operands operands) {
    return operands == Operands::kFloat ? ort::kFloat : operands == Operands::kInt8 ? ort::kInt8 : ort::kBfloat16;
}
constexpr std::size_t matrix_bytes(Operands operands) {
    return operands == Operands::kFloat ? sizeof(float) : operands == Operands::kInt8 ? 1 : sizeof(std::uint16_t);
}

// The values of a matrix of bfloat16 or 8 bits.
std::vector<float> floats_of(Tensor const& tensor, Operands operands);

// The weights of a node as floats, while its kernel copies them: matrices of another type are converted. Afterwards all
// that are mapped from a file are let go of.
template <std::size_t Count>
class WeightFloats {
public:
    // is_matrix: of each weight.
    WeightFloats(Tensor const (&weights)[Count], bool const* is_matrix, Operands operands)
        : weights_(weights), matrix_bytes_(matrix_bytes(operands)) {
        for (std::size_t i = 0; i < Count; ++i) {
            if (operands != Operands::kFloat && is_matrix[i]) converted_[i] = floats_of(weights[i], operands);
        }
    }
    ~WeightFloats() {
        for (std::size_t i = 0; i < Count; ++i)
            release_weight(weights_[i], converted_[i].empty() ? sizeof(float) : matrix_bytes_);
    }
    WeightFloats(WeightFloats const&) = delete;
    WeightFloats& operator=(WeightFloats const&) = delete;

    float const* operator[](std::size_t i) const {
        return converted_[i].empty() ? weights_[i].data : converted_[i].data();
    }

private:
    Tensor const (&weights_)[Count];
    std::size_t matrix_bytes_;
    std::vector<float> converted_[Count];
};

// One run: its tensors, and ONNX Runtime's memory and threads.
class Run final : public Host {
public:
    Run(ort::Table api, Memory const& memory, OrtKernelContext* context)
        : api_(api), allocator_(memory.get()), context_(context) {}

    Tensor input() const;
    // The output, which has the sizes of `like`.
    Tensor output(Tensor const& like) const;

    void for_each(long count, void (*task)(void*, std::size_t), void* data) override;
    void* allocate(std::size_t bytes) noexcept override;
    void release(void* memory, std::size_t bytes) noexcept override;

private:
    ort::Table api_;
    OrtAllocator* allocator_;
    OrtKernelContext* context_;
};

// The kernels that this process runs, or null.
Kernels const* chosen_kernels(Operands operands);

// Those for what stays in float beside bfloat16 or 8 bits: every processor that has kernels for these has AVX2.
inline Kernels const& float_kernels() { return *choose_kernels(Operands::kFloat, nullptr); }

// What ONNX Runtime asks about an operator. Kernel has kName, kOperands, kInputs, input_type(index), a constructor of a
// Node and Kernels, and compute(context), and may throw.
template <typename Kernel>
ort::CustomOp make_op() {
    struct Made {
        ort::Table api;
        Kernel kernel;
    };
    ort::CustomOp op{};
    op.version = ort::kVersion;
    op.name = [](ort::CustomOp const*) { return Kernel::kName; };
    op.provider = [](ort::CustomOp const*) -> char const* { return nullptr; };  // the CPU's
    op.input_type = [](ort::CustomOp const*, std::size_t i) { return Kernel::input_type(i); };
    op.input_count = [](ort::CustomOp const*) { return Kernel::kInputs; };
    op.output_type = [](ort::CustomOp const*, std::size_t) { return ort::kFloat; };
    op.output_count = [](ort::CustomOp const*) { return std::size_t{1}; };
    op.input_characteristic =
        op.output_characteristic = [](ort::CustomOp const*, std::size_t) { return ort::kRequired; };
    op.input_memory = [](ort::CustomOp const*, std::size_t) { return ort::kDefaultMemory; };
    op.first_version = op.last_version = [](ort::CustomOp const*) { return 1; };
    op.create_v2 = [](ort::CustomOp const*, ort::Table api, OrtKernelInfo const* info, void** kernel) {
        return guard(api, Kernel::kName,
                     [&] { *kernel = new Made{api, Kernel(Node(api, info), *chosen_kernels(Kernel::kOperands))}; });
    };
    op.compute_v2 = [](void* kernel, OrtKernelContext* context) {
        auto const& made = *static_cast<Made const*>(kernel);
        return guard(made.api, Kernel::kName, [&] { made.kernel.compute(made.api, context); });
    };
    op.destroy = [](void* kernel) { delete static_cast<Made*>(kernel); };
    return op;
}

// The operators of the library, one file each.
ort::CustomOp axial_shift_op();
ort::CustomOp axial_shift_bf16_op();
ort::CustomOp axial_shift_int8_op();
ort::CustomOp cycle_op();
ort::CustomOp cycle_bf16_op();
ort::CustomOp cycle_int8_op();
ort::CustomOp downsample_bf16_op();
ort::CustomOp downsample_int8_op();
ort::CustomOp normalized_patch_embed_op();
ort::CustomOp patch_embed_op();
ort::CustomOp patch_merging_bf16_op();
ort::CustomOp patch_merging_int8_op();
ort::CustomOp permutator_op();
ort::CustomOp permutator_bf16_op();
ort::CustomOp permutator_int8_op();

}  // namespace mlpdeploy::cpu
