// The kernel's arithmetic on the host: reads cases from a file, does what the
// threads of the kernel do in a plain loop, writes both outputs of each case to
// another file. Built with sanitizers: buffers are exactly as large as the
// tensors.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "axial_shift_index.h"

using namespace mlpdeploy;

namespace {

enum CaseField { kN, kC, kH, kW, kBLOCK, kSHIFT, kDILATION, kPADDING, kBYTES, kOFFSET, kLIMIT, kFIELDS };

/// Memory that begins `offset` elements behind a multiple of 16 bytes, and ends
/// with its last element.
template <typename T>
struct Buffer {
    Buffer(int64_t count, int64_t offset) : size(static_cast<size_t>(count + offset) * sizeof(T)) {
        if (posix_memalign(&memory, kCHUNK_BYTES, size ? size : 1) != 0) {
            std::abort();
        }
        data = static_cast<T*>(memory) + offset;
    }
    ~Buffer() { std::free(memory); }
    Buffer(Buffer const&) = delete;
    Buffer& operator=(Buffer const&) = delete;
    size_t size;
    void* memory = nullptr;
    T* data = nullptr;
};

template <typename T>
bool run_case(AxialShiftParams const& params, int64_t offset, int64_t limit, std::FILE* in, std::FILE* out) {
    auto const count = static_cast<size_t>(params.n * image_elements(params));
    Buffer<T> x(static_cast<int64_t>(count), offset);
    Buffer<T> y_w(static_cast<int64_t>(count), offset);
    Buffer<T> y_h(static_cast<int64_t>(count), offset);
    if (std::fread(x.data, sizeof(T), count, in) != count) {
        return false;
    }
    Buffer<T> divided_w(static_cast<int64_t>(count), offset);
    Buffer<T> divided_h(static_cast<int64_t>(count), offset);
    for_each_launch(params, static_cast<T const*>(x.data), y_w.data, y_h.data, limit,
                    [](auto variant, AxialShiftParams const& part, T const* from, T* to_w, T* to_h) {
                        using V = decltype(variant);
                        auto const plan = plan_of<typename V::Index>(part);
                        auto const divide = dividers_of<typename V::Divide>(plan);
                        for (typename V::Index first = 0; first < plan.total; first += V::kElements) {
                            shift_chunk<T, V::kElements>(plan, divide, from, to_w, to_h, first);
                        }
                        return true;
                    });
    // What an engine that carries the kernel does.
    for_each_launch(params, static_cast<T const*>(x.data), divided_w.data, divided_h.data, limit,
                    [](auto variant, AxialShiftParams const& part, T const* from, T* to_w, T* to_h) {
                        using V = decltype(variant);
                        auto const plan = plan_of<typename V::Index>(part);
                        auto const divide = dividers_of<Divisor<typename V::Index>>(plan);
                        for (typename V::Index first = 0; first < plan.total; first += V::kElements) {
                            shift_chunk<T, V::kElements>(plan, divide, from, to_w, to_h, first);
                        }
                        return true;
                    });
    if (std::memcmp(y_w.data, divided_w.data, count * sizeof(T)) != 0 ||
        std::memcmp(y_h.data, divided_h.data, count * sizeof(T)) != 0) {
        std::fprintf(stderr, "Divisor and Reciprocal differ\n");
        return false;
    }
    return std::fwrite(y_w.data, sizeof(T), count, out) == count &&
           std::fwrite(y_h.data, sizeof(T), count, out) == count;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        return 2;
    }
    std::FILE* in = std::fopen(argv[1], "rb");
    std::FILE* out = std::fopen(argv[2], "wb");
    if (!in || !out) {
        return 2;
    }
    int64_t field[kFIELDS];
    while (std::fread(field, sizeof(int64_t), kFIELDS, in) == kFIELDS) {
        AxialShiftParams const params{
            field[kN],     field[kC],     field[kH],        field[kW],
            field[kBLOCK], field[kSHIFT], field[kDILATION], static_cast<Padding>(field[kPADDING])};
        char const refused = refusal(params) != nullptr;
        std::fwrite(&refused, 1, 1, out);
        if (refused) {
            continue;
        }
        bool good = false;
        switch (field[kBYTES]) {
            case 1:
                good = run_case<uint8_t>(params, field[kOFFSET], field[kLIMIT], in, out);
                break;
            case 2:
                good = run_case<uint16_t>(params, field[kOFFSET], field[kLIMIT], in, out);
                break;
            case 4:
                good = run_case<uint32_t>(params, field[kOFFSET], field[kLIMIT], in, out);
                break;
            default:
                break;
        }
        if (!good) {
            return 1;
        }
    }
    std::fclose(in);
    return std::fclose(out);
}
