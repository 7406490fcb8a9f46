#include "picture.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mlpdeploy::cpu {

namespace {

constexpr int kWeightBits = 22;  // 8 of the pixel and 2 for overshoot are left of 32
constexpr std::int32_t kHalf = 1 << (kWeightBits - 1);
constexpr int kWide = 4;    // bytes of a pixel between the passes, whatever it had
constexpr int kLanes = 16;  // sums in a vector: kWide pixels

// A part of one axis, in pixels.
struct Span {
    int first = 0, count = 0;
};

// The sources of each output pixel along one axis, and their weights, (outputs, stride). Sources are counted from the
// first one that any output needs: `all` says where that is, and how many there are.
struct Taps {
    std::vector<Span> sources;
    std::vector<std::int32_t> weights;
    int stride = 0;
    Span all;

    std::int32_t const* of(int output) const { return weights.data() + std::ptrdiff_t{output} * stride; }
};

double bilinear(double x) {
    x = std::abs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

// Cubic convolution with a = -1/2.
double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

// The outputs `span` of an axis that is resized from `source_size` to `size` pixels.
Taps taps_of(int source_size, int size, Span span, Filter filter) {
    Taps taps;
    taps.sources.reserve(static_cast<std::size_t>(span.count));
    if (source_size == size) {
        for (int i = 0; i < span.count; ++i) taps.sources.push_back({i, 1});
        taps.all = span;
        return taps;
    }
    double const scale = static_cast<double>(source_size) / size;
    double const stretch = std::max(scale, 1.0);
    double const reach = (filter == Filter::kBicubic ? 2.0 : 1.0) * stretch;
    taps.stride = static_cast<int>(std::ceil(reach)) * 2 + 1;
    taps.weights.resize(static_cast<std::size_t>(span.count) * static_cast<std::size_t>(taps.stride));
    std::vector<double> exact(static_cast<std::size_t>(taps.stride));
    for (int i = 0; i < span.count; ++i) {
        double const centre = (span.first + i + 0.5) * scale;
        int const first = std::max(static_cast<int>(centre - reach + 0.5), 0);
        int const count = std::min(static_cast<int>(centre + reach + 0.5), source_size) - first;
        double sum = 0.0;
        for (int k = 0; k < count; ++k) {
            double const distance = (k + first - centre + 0.5) * (1.0 / stretch);
            double& weight = exact[static_cast<std::size_t>(k)];
            weight = filter == Filter::kBicubic ? bicubic(distance) : bilinear(distance);
            sum += weight;
        }
        std::int32_t* weights = taps.weights.data() + std::ptrdiff_t{i} * taps.stride;
        for (int k = 0; k < count; ++k) {
            double const share = (sum != 0.0 ? exact[static_cast<std::size_t>(k)] / sum : 0.0) * (1 << kWeightBits);
            weights[k] = static_cast<std::int32_t>(share < 0 ? share - 0.5 : share + 0.5);
        }
        taps.sources.push_back({first, count});
    }
    Span const last = taps.sources.back();
    taps.all = {taps.sources.front().first, last.first + last.count - taps.sources.front().first};
    for (Span& source : taps.sources) source.first -= taps.all.first;
    return taps;
}

std::uint8_t rounded(std::int32_t sum) { return static_cast<std::uint8_t>(std::clamp(sum >> kWeightBits, 0, 255)); }

// The weights of a horizontal pass as `across` reads them: of each output `vectors` vectors, a pixel's weight for each
// of its bytes. Sources that there are not have the weight zero.
struct Horizontal {
    Taps taps;
    int vectors = 0;
    std::vector<std::int32_t> weights;

    explicit Horizontal(Taps from) : taps(std::move(from)) {
        int most = 0;
        for (Span const source : taps.sources) most = std::max(most, source.count);
        vectors = taps.stride == 0 ? 0 : (most + kWide - 1) / kWide;
        std::size_t const each = static_cast<std::size_t>(vectors) * kLanes;
        weights.resize(taps.sources.size() * each);
        for (std::size_t i = 0; i < taps.sources.size() && taps.stride != 0; ++i) {
            for (int k = 0; k < taps.sources[i].count; ++k) {
                std::fill_n(weights.data() + i * each + static_cast<std::size_t>(k) * kWide, kWide,
                            taps.of(static_cast<int>(i))[k]);
            }
        }
    }

    // Bytes of a row that `across` may read: the last output's vectors reach beyond its sources.
    std::size_t readable_bytes() const { return static_cast<std::size_t>(taps.all.count + vectors * kWide) * kWide; }
};

void across_anywhere(std::uint8_t const* row, Horizontal const& pass, std::uint8_t* out) {
    std::int32_t const* weights = pass.weights.data();
    for (Span const source : pass.taps.sources) {
        std::uint8_t const* pixel = row + std::ptrdiff_t{source.first} * kWide;
        std::int32_t sums[kWide] = {kHalf, kHalf, kHalf, kHalf};
        for (int k = 0; k < source.count; ++k) {
            for (int c = 0; c < kWide; ++c) sums[c] += pixel[k * kWide + c] * weights[k * kWide + c];
        }
        for (int c = 0; c < kWide; ++c) *out++ = rounded(sums[c]);
        weights += std::ptrdiff_t{pass.vectors} * kLanes;
    }
}

void down_from(std::size_t first, std::uint8_t const* const* rows, std::int32_t const* weights, int count,
               std::size_t bytes, std::uint8_t* out) {
    for (std::size_t i = first; i < bytes; ++i) {
        std::int32_t sum = kHalf;
        for (int k = 0; k < count; ++k) sum += rows[k][i] * weights[k];
        out[i] = rounded(sum);
    }
}

void down_anywhere(std::uint8_t const* const* rows, std::int32_t const* weights, int count, std::size_t bytes,
                   std::uint8_t* out) {
    down_from(0, rows, weights, count, bytes, out);
}

// The two passes on rows.
struct Passes {
    // out: an output pixel each, of kWide bytes. Reads Horizontal::readable_bytes() of `row`.
    void (*across)(std::uint8_t const* row, Horizontal const& pass, std::uint8_t* out);
    // out: (bytes) = the sum of `count` rows times their weights.
    void (*down)(std::uint8_t const* const* rows, std::int32_t const* weights, int count, std::size_t bytes,
                 std::uint8_t* out);
};

constexpr Passes kAnywhere{across_anywhere, down_anywhere};

#if defined(__x86_64__)
#define MLPDEPLOY_AVX2 __attribute__((target("avx2")))
#define MLPDEPLOY_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))

// Eight sums and as many bytes times their weights.
MLPDEPLOY_AVX2 __m256i added_product(__m256i sums, std::uint8_t const* bytes, __m256i weights) {
    __m256i const values = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<__m128i const*>(bytes)));
    return _mm256_add_epi32(sums, _mm256_mullo_epi32(values, weights));
}

// The pixel that four sums are.
MLPDEPLOY_AVX2 void put_pixel(__m128i sums, std::uint8_t* out) {
    __m128i pixel = _mm_srai_epi32(_mm_add_epi32(sums, _mm_set1_epi32(kHalf)), kWeightBits);
    pixel = _mm_packus_epi32(pixel, pixel);  // what is left of 22 bits fits in 16 bits with a sign
    pixel = _mm_packus_epi16(pixel, pixel);
    std::int32_t const word = _mm_cvtsi128_si32(pixel);
    std::memcpy(out, &word, kWide);
}

MLPDEPLOY_AVX2 void across_avx2(std::uint8_t const* row, Horizontal const& pass, std::uint8_t* out) {
    std::int32_t const* weights = pass.weights.data();
    for (Span const source : pass.taps.sources) {
        std::uint8_t const* bytes = row + std::ptrdiff_t{source.first} * kWide;
        __m256i left = _mm256_setzero_si256(), right = left;
        for (int k = 0; k < pass.vectors; ++k, bytes += kLanes, weights += kLanes) {
            auto const* const at = reinterpret_cast<__m256i const*>(weights);
            left = added_product(left, bytes, _mm256_loadu_si256(at));
            right = added_product(right, bytes + kLanes / 2, _mm256_loadu_si256(at + 1));
        }
        __m256i const half = _mm256_add_epi32(left, right);
        put_pixel(_mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)), out);
        out += kWide;
    }
}

MLPDEPLOY_AVX2 void down_avx2(std::uint8_t const* const* rows, std::int32_t const* weights, int count,
                              std::size_t bytes, std::uint8_t* out) {
    constexpr std::size_t kVectors = 4, kSums = 8;
    std::size_t i = 0;
    for (; i + kVectors * kSums <= bytes; i += kVectors * kSums) {
        __m256i const half = _mm256_set1_epi32(kHalf);
        __m256i sums[kVectors] = {half, half, half, half};
        for (int k = 0; k < count; ++k) {
            __m256i const weight = _mm256_set1_epi32(weights[k]);
            for (std::size_t v = 0; v < kVectors; ++v)
                sums[v] = added_product(sums[v], rows[k] + i + v * kSums, weight);
        }
        for (__m256i& sum : sums) sum = _mm256_srai_epi32(sum, kWeightBits);
        // Packing goes by halves of a vector: the fours come as 0, 2, 4, 6, 1, 3, 5, 7.
        __m256i const mixed =
            _mm256_packus_epi16(_mm256_packus_epi32(sums[0], sums[1]), _mm256_packus_epi32(sums[2], sums[3]));
        __m256i const order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_permutevar8x32_epi32(mixed, order));
    }
    down_from(i, rows, weights, count, bytes, out);
}

constexpr Passes kAvx2{across_avx2, down_avx2};

// Four pixels at a time: a weight for each byte, and at the end the sum of the four.
MLPDEPLOY_AVX512 void across_avx512(std::uint8_t const* row, Horizontal const& pass, std::uint8_t* out) {
    std::int32_t const* weights = pass.weights.data();
    for (Span const source : pass.taps.sources) {
        std::uint8_t const* bytes = row + std::ptrdiff_t{source.first} * kWide;
        __m512i sums = _mm512_setzero_si512();
        for (int k = 0; k < pass.vectors; ++k, bytes += kLanes, weights += kLanes) {
            __m512i const values = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<__m128i const*>(bytes)));
            sums = _mm512_add_epi32(sums, _mm512_mullo_epi32(values, _mm512_loadu_si512(weights)));
        }
        __m256i const half = _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
        put_pixel(_mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)), out);
        out += kWide;
    }
}

MLPDEPLOY_AVX512 void down_avx512(std::uint8_t const* const* rows, std::int32_t const* weights, int count,
                                  std::size_t bytes, std::uint8_t* out) {
    constexpr std::size_t kVectors = 4;
    __m512i const half = _mm512_set1_epi32(kHalf), zero = _mm512_setzero_si512();
    for (std::size_t i = 0; i < bytes; i += kVectors * kLanes) {
        std::size_t const left = std::min(bytes - i, kVectors * kLanes);
        __mmask64 const there = left == 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
        __m512i sums[kVectors] = {half, half, half, half};
        for (int k = 0; k < count; ++k) {
            __m512i const values = _mm512_maskz_loadu_epi8(there, rows[k] + i);
            __m512i const weight = _mm512_set1_epi32(weights[k]);
            __m128i const parts[kVectors] = {_mm512_castsi512_si128(values), _mm512_extracti32x4_epi32(values, 1),
                                             _mm512_extracti32x4_epi32(values, 2),
                                             _mm512_extracti32x4_epi32(values, 3)};
            for (std::size_t v = 0; v < kVectors; ++v)
                sums[v] = _mm512_add_epi32(sums[v], _mm512_mullo_epi32(_mm512_cvtepu8_epi32(parts[v]), weight));
        }
        for (std::size_t v = 0; v < kVectors && v * kLanes < left; ++v) {
            __m512i const values = _mm512_max_epi32(_mm512_srai_epi32(sums[v], kWeightBits), zero);
            __mmask16 const lanes = static_cast<__mmask16>(there >> (v * kLanes));
            _mm_mask_storeu_epi8(out + i + v * kLanes, lanes, _mm512_cvtusepi32_epi8(values));
        }
    }
}

constexpr Passes kAvx512{across_avx512, down_avx512};
#endif

#if defined(__x86_64__)
// MLPDEPLOY_NATIVE may ask for kernels of narrower instructions, or for none: see choose.cpp and operator.cpp.
Passes const& passes_of_processor() {
    char const* const asked = std::getenv("MLPDEPLOY_NATIVE");
    std::string const named = asked == nullptr ? "" : asked;
    bool const may_be_avx512 = named.empty() || named.compare(0, 6, "avx512") == 0 || named == "amx";
    if (may_be_avx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return kAvx512;
    return (may_be_avx512 || named == "avx2") && __builtin_cpu_supports("avx2") ? kAvx2 : kAnywhere;
}
#endif

Passes const& passes_here() {
#if defined(__x86_64__)
    static Passes const& passes = passes_of_processor();
    return passes;
#else
    return kAnywhere;
#endif
}

// out: kWide bytes a pixel, from a row of a picture. Bytes that a pixel does not have hold anything.
void widen(std::uint8_t const* row, int pixel_bytes, int count, std::uint8_t* out) {
    if (pixel_bytes == kWide) {
        std::memcpy(out, row, static_cast<std::size_t>(count) * kWide);
    } else if (pixel_bytes == 1) {
        for (int x = 0; x < count; ++x) out[std::ptrdiff_t{x} * kWide] = row[x];
    } else {
        for (int x = 0; x < count - 1; ++x, row += pixel_bytes, out += kWide) std::memcpy(out, row, kWide);
        std::memcpy(out, row, static_cast<std::size_t>(pixel_bytes));  // the last one has nothing behind it to read
    }
}

// The pixels of the resized picture that a crop shows, along one axis.
Span visible(int start, int crop, int size) {
    int const first = std::max(start, 0);
    return {first, std::max(0, std::min(start + crop, size) - first)};
}

// Makes the rows that are shown, kWide bytes a pixel.
class Rows {
public:
    Rows(Picture const& picture, View const& view, Span rows, Span columns)
        : vertical_(taps_of(picture.height, view.height, rows, view.filter)),
          horizontal_(taps_of(picture.width, view.width, columns, view.filter)),
          pixel_bytes_(picture.pixel_bytes),
          row_bytes_(picture.row_bytes),
          first_(picture.pixels + vertical_.all.first * picture.row_bytes +
                 std::ptrdiff_t{horizontal_.taps.all.first} * picture.pixel_bytes),
          narrow_(static_cast<std::size_t>(horizontal_.taps.all.count * picture.pixel_bytes)),
          wide_(horizontal_.readable_bytes()),
          row_(static_cast<std::size_t>(columns.count) * kWide),
          sources_(static_cast<std::size_t>(std::max(vertical_.stride, 1))) {
        bool const shrinks_more =
            picture.height > view.height && picture.height - view.height > 2 * (picture.width - view.width);
        vertical_first_ = vertical_.stride != 0 && (horizontal_.taps.stride == 0 || shrinks_more);
        if (!vertical_first_) made_.resize(sources_.size() * row_.size());
    }

    // Row `index` of those that are shown; they are asked for in order.
    std::uint8_t const* row(int index) {
        Span const from = vertical_.sources[static_cast<std::size_t>(index)];
        if (vertical_first_) {
            for (int k = 0; k < from.count; ++k) sources_[static_cast<std::size_t>(k)] = source(from.first + k);
            passes_.down(sources_.data(), vertical_.of(index), from.count, narrow_.size(), narrow_.data());
            return across(narrow_.data(), row_.data());
        }
        if (vertical_.stride == 0) return across(source(from.first), row_.data());
        for (int k = 0; k < from.count; ++k) {
            std::size_t const place = static_cast<std::size_t>((from.first + k) % vertical_.stride) * row_.size();
            if (from.first + k >= next_) across(source(from.first + k), made_.data() + place);
            sources_[static_cast<std::size_t>(k)] = made_.data() + place;
        }
        next_ = std::max(next_, from.first + from.count);
        passes_.down(sources_.data(), vertical_.of(index), from.count, row_.size(), row_.data());
        return row_.data();
    }

private:
    std::uint8_t const* source(int index) const { return first_ + index * row_bytes_; }

    std::uint8_t const* across(std::uint8_t const* from, std::uint8_t* out) {
        int const count = horizontal_.taps.all.count;
        if (horizontal_.taps.stride == 0) {
            widen(from, pixel_bytes_, count, out);
        } else {
            widen(from, pixel_bytes_, count, wide_.data());
            passes_.across(wide_.data(), horizontal_, out);
        }
        return out;
    }

    Passes const& passes_ = passes_here();
    Taps vertical_;
    Horizontal horizontal_;
    int pixel_bytes_;
    std::ptrdiff_t row_bytes_;
    std::uint8_t const* first_;
    bool vertical_first_;
    int next_ = 0;                             // the first source row that did not go through the horizontal pass yet
    std::vector<std::uint8_t> narrow_, wide_;  // a source row as the picture has it, and widened
    std::vector<std::uint8_t> row_;
    std::vector<std::uint8_t> made_;  // the last rows of the horizontal pass, as many as an output needs
    std::vector<std::uint8_t const*> sources_;
};

}  // namespace

void prepare(Picture const& picture, View const& view, Levels const& levels, float* planes) {
    Span const rows = visible(view.top, view.crop_height, view.height);
    Span const columns = visible(view.left, view.crop_width, view.width);
    std::ptrdiff_t const plane = std::ptrdiff_t{view.crop_height} * view.crop_width;
    bool const whole = rows.count == view.crop_height && columns.count == view.crop_width;
    for (int c = 0; c < levels.channels && !whole; ++c) std::fill_n(planes + c * plane, plane, levels.levels[c * 256]);
    if (rows.count == 0 || columns.count == 0) return;
    Rows source(picture, view, rows, columns);
    float* out = planes + std::ptrdiff_t{rows.first - view.top} * view.crop_width + (columns.first - view.left);
    for (int y = 0; y < rows.count; ++y, out += view.crop_width) {
        std::uint8_t const* const row = source.row(y);
        for (int c = 0; c < levels.channels; ++c) {
            float const* const of_channel = levels.levels + std::ptrdiff_t{c} * 256;
            std::uint8_t const* pixel = row + (levels.reversed ? levels.channels - 1 - c : c);
            float* const to = out + c * plane;
            for (int x = 0; x < columns.count; ++x) to[x] = of_channel[pixel[std::ptrdiff_t{x} * kWide]];
        }
    }
}

}  // namespace mlpdeploy::cpu

// For other languages. Returns 0, or 1 where there is no memory. bicubic: otherwise bilinear.
extern "C" __attribute__((visibility("default"))) int mlpdeploy_cpu_prepare(
    std::uint8_t const* pixels, int height, int width, int pixel_bytes, std::ptrdiff_t row_bytes, int resized_height,
    int resized_width, int top, int left, int crop_height, int crop_width, int bicubic, float const* levels,
    int channels, float* planes) noexcept {
    using namespace mlpdeploy::cpu;
    try {
        Filter const filter = bicubic ? Filter::kBicubic : Filter::kBilinear;
        prepare({pixels, height, width, pixel_bytes, row_bytes},
                {resized_height, resized_width, top, left, crop_height, crop_width, filter}, {levels, channels, false},
                planes);
        return 0;
    } catch (...) {
        return 1;
    }
}
