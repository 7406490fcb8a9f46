// The kernels for one instruction set: this file is compiled once for each, with that set's compiler flags, so nothing
// with external linkage may be in it but the table at its end (and no C++ standard library).
#include "kernels.h"

#include "gelu.h"
#include "operand.h"
#include "product.h"
#include "vector.h"

namespace mlpdeploy::cpu::MLPDEPLOY_ISA {
namespace {

// Call step(row of floats, column) for every pair of vectors, and write the pair that it returns as operands.
template <typename Step>
MLPDEPLOY_INLINE void write_operands(Rows const& rows, Step const& step) {
    float const* from = rows.from;
    Operand* to = static_cast<Operand*>(rows.to);
    Steps const steps(rows.scale);
    for (long row = 0; row < rows.count; ++row, from += rows.from_stride, to += rows.to_stride) {
        for (long c = 0; c < rows.width; c += kPanel) {
            store_operands(to + c, step(from, c), step(from, c + kVector), steps);
        }
    }
}

void normalize(Rows const& rows, float mean, float factor) {
    write_operands(rows, [mean, factor](float const* from, long c)
                             __attribute__((always_inline)) { return (load(from + c) - splat(mean)) * splat(factor); });
}

void normalize_affine(Rows const& rows, float mean, float factor, float const* scale, float const* offset) {
    write_operands(rows, [=](float const* from, long c) __attribute__((always_inline)) {
        return (load(from + c) - splat(mean)) * splat(factor) * load(scale + c) + load(offset + c);
    });
}

void normalize_gelu(Rows const& rows, float mean, float factor, float const* scale, float const* offset) {
    write_operands(rows, [=](float const* from, long c) __attribute__((always_inline)) {
        return gelu((load(from + c) - splat(mean)) * splat(factor) * load(scale + c) + load(offset + c));
    });
}

// The lanes of the last vector of a row that hold channels.
MLPDEPLOY_INLINE Vector lanes_of(long channels) {
    Vector lanes{};
    for (long lane = 0; lane < kVector; ++lane) lanes[lane] = (channels - 1) % kVector >= lane ? 1.0F : 0.0F;
    return lanes;
}

MLPDEPLOY_INLINE double total_of(Vector sums) {
    double total = 0;
    for (long lane = 0; lane < kVector; ++lane) total += static_cast<double>(sums[lane]);
    return total;
}

// The sum of step(vector) over a row's channels, in four sums, because one addition waits for the one before it.
template <typename Step>
MLPDEPLOY_INLINE void add_row(float const* at, long channels, Vector lanes, Vector (&sums)[4], Step const& step) {
    long const whole = (channels - 1) / kVector * kVector;
    long c = 0;
    for (; c + 4 * kVector <= whole; c += 4 * kVector) {
        for (int i = 0; i < 4; ++i) sums[i] += step(load(at + c + i * kVector));
    }
    for (; c < whole; c += kVector) sums[0] += step(load(at + c));
    sums[1] += step(load(at + whole)) * lanes;
}

MLPDEPLOY_INLINE double total_of(Vector const (&sums)[4]) {
    return total_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

Moments moments(float const* x, long row_count, long stride, long channels) {
    double const count = static_cast<double>(row_count) * static_cast<double>(channels);
    Vector const lanes = lanes_of(channels);
    Vector sums[4] = {};
    for (long row = 0; row < row_count; ++row) {
        add_row(x + row * stride, channels, lanes, sums,
                [](Vector value) __attribute__((always_inline)) { return value; });
    }
    float const mean = static_cast<float>(total_of(sums) / count);
    Vector const centre = splat(mean);
    Vector squares[4] = {};
    for (long row = 0; row < row_count; ++row) {
        add_row(x + row * stride, channels, lanes, squares,
                [centre](Vector value) __attribute__((always_inline)) { return (value - centre) * (value - centre); });
    }
    return {mean, static_cast<float>(total_of(squares))};
}

void layer_norm(Rows const& rows, long channels, float epsilon, float const* scale, float const* offset) {
    Rows row = rows;
    row.count = 1;
    for (long i = 0; i < rows.count; ++i) {
        Moments const m = moments(row.from, 1, row.from_stride, channels);
        double const variance = static_cast<double>(m.squares) / static_cast<double>(channels);
        float const factor = static_cast<float>(1 / __builtin_sqrt(variance + static_cast<double>(epsilon)));
        write_operands(row, [=](float const* from, long c) __attribute__((always_inline)) {
            return (load(from + c) - splat(m.mean)) * splat(factor) * load(scale + c) + load(offset + c);
        });
        row.from += rows.from_stride;
        row.to = static_cast<Operand*>(row.to) + rows.to_stride;
    }
}

#ifdef MLPDEPLOY_INT8
// The sums of two vectors of columns, exact: in words, which hold the sum of 257 bytes, and then in floats.
MLPDEPLOY_INLINE void column_sums(Operand const* at, long step, long row_count, Vector (&sums)[2]) {
    constexpr long kMostRows = 257;
    typedef Operand Bytes __attribute__((vector_size(kPanel)));
    typedef unsigned short Words __attribute__((vector_size(2 * kPanel)));
    typedef unsigned short Half __attribute__((vector_size(kPanel)));
    for (long row = 0; row < row_count;) {
        long const end = row_count - row < kMostRows ? row_count : row + kMostRows;
        Words words{};
        for (; row < end; ++row) {
            Bytes bytes;
            memcpy(&bytes, at + row * step, sizeof bytes);
            words += __builtin_convertvector(bytes, Words);
        }
        Half halves[2];
        memcpy(halves, &words, sizeof words);
        for (int i = 0; i < 2; ++i) sums[i] += __builtin_convertvector(halves[i], Vector);
    }
}
#else
MLPDEPLOY_INLINE void column_sums(Operand const* at, long step, long row_count, Vector (&sums)[2]) {
    for (long row = 0; row < row_count; ++row) {
        for (int i = 0; i < 2; ++i) sums[i] += load_operands(at + row * step + i * kVector);
    }
}
#endif

void mean_of_rows(void const* rows, long step, long row_count, long channels, [[maybe_unused]] Scale const& scale,
                  float* out) {
    Vector const factor = splat(1.0F / static_cast<float>(row_count));
    for (long c = 0; c < channels; c += kPanel) {
        Vector sums[2] = {};
        column_sums(static_cast<Operand const*>(rows) + c, step, row_count, sums);
        for (int i = 0; i < 2; ++i) {
#if defined(MLPDEPLOY_INT8) || defined(MLPDEPLOY_WHOLE_OPERANDS)
            store(out + c + i * kVector, (sums[i] * factor - splat(scale.zero)) * splat(scale.step));
#else
            store(out + c + i * kVector, sums[i] * factor);
#endif
        }
    }
}

void blend(Rows const& rows, float const* h, float const* w, float const* gates) {
    float const* const first = rows.from;
    long const stride = rows.from_stride;
    write_operands(rows, [=](float const* from, long c) __attribute__((always_inline)) {
        long const at = from - first + c;
        Vector const sum = load(h + at) * load(gates + c) + load(w + at) * load(gates + stride + c);
        return load(from + c) * load(gates + 2 * stride + c) + sum;
    });
}

void copy_segments(Segments const& s) {
    for (long first = 0; first < s.size; first += kMoved) {
        Operand const* from = static_cast<Operand const*>(s.from) + first;
        Operand* to = static_cast<Operand*>(s.to) + first;
        long const size = s.size - first < kMoved ? s.size - first : kMoved;
        for (long i = 0; i < s.count; ++i, from += s.from_step, to += s.to_step) {
            put_first(to, size, take_first(from, size));
        }
    }
}

// Where pixel `at` of a line of `size` comes from, or -1 for a zero. Reflection needs at < 2 * size - 1.
MLPDEPLOY_INLINE long source_of(long at, long size, Padding padding) {
    if (at >= 0 && at < size) return at;
    switch (padding) {
        case Padding::kZero:
            return -1;
        case Padding::kCircular:
            at %= size;
            return at < 0 ? at + size : at;
        case Padding::kReflect:
            return at < 0 ? -at : 2 * (size - 1) - at;
        case Padding::kReplicate:
            return at < 0 ? 0 : size - 1;
    }
    return -1;
}

void shift(Image const& image, Shift const& shift, bool along_width, long first, long count, void* rows) {
    long const group_size = (image.channels + shift.size - 1) / shift.size;
    Operand* out = static_cast<Operand*>(rows);
    Moved const zeros = zeros_of(image.scale);
    for (long pixel = first; pixel < first + count; ++pixel, out += image.stride) {
        long const y = pixel / image.width;
        long const x = pixel % image.width;
        // Whole vectors where the row is long enough: a group overwrites what the one before wrote too much.
        for (long group = 0, channel = 0; channel < image.channels; ++group, channel += group_size) {
            long const moved = (group - shift.size / 2) * shift.dilation;
            long const from = along_width ? source_of(x - moved, image.width, shift.padding)
                                          : source_of(y - moved, image.height, shift.padding);
            long const source_pixel = along_width ? y * image.width + from : from * image.width + x;
            Operand const* source =
                from < 0 ? nullptr : static_cast<Operand const*>(image.rows) + source_pixel * image.stride;
            long const end = channel + group_size < image.channels ? channel + group_size : image.channels;
            for (long c = channel; c < end; c += kMoved) {
                if (c + kMoved <= image.stride) {
                    put(out + c, source == nullptr ? zeros : take(source + c));
                } else {
                    put_first(out + c, end - c, source == nullptr ? zeros : take_first(source + c, end - c));
                }
            }
        }
        for (long c = image.channels; c % kDepthUnit != 0; ++c) out[c] = 0;  // of which products read all
    }
}

void cycle(Image const& image, bool along_width, long first, long count, void* rows) {
    Moved const zeros = zeros_of(image.scale);
    typedef decltype(zeros == Moved{}) Lanes;
    Lanes turns[3] = {};  // every third lane, from lane 0, 1 or 2 on
    for (long lane = 0; lane < kMoved; ++lane) turns[lane % 3][lane] = -1;
    long const step = along_width ? image.stride : image.width * image.stride;
    long const last = (along_width ? image.width : image.height) - 1;
    Operand* out = static_cast<Operand*>(rows);
    for (long pixel = first; pixel < first + count; ++pixel, out += image.stride) {
        long const at = along_width ? pixel % image.width : pixel / image.width;
        Operand const* here = static_cast<Operand const*>(image.rows) + pixel * image.stride;
        long turn = 0;  // of the lanes that are read here
        for (long c = 0; c < image.channels; c += kMoved, turn = (turn + 3 - kMoved % 3) % 3) {
            Moved const behind = at < last ? take(here + step + c) : zeros;
            Moved const before = at > 0 ? take(here - step + c) : zeros;
            put(out + c, turns[turn] ? take(here + c) : turns[(turn + 1) % 3] ? behind : before);
        }
        for (long c = image.channels; c % kDepthUnit != 0; ++c) out[c] = 0;  // of which products read all
    }
}

// The elements of a and b in turns: those of their first halves, or of their second halves.
template <int Half>
MLPDEPLOY_INLINE Vector interleave(Vector a, Vector b) {
#if MLPDEPLOY_VECTOR == 16
    constexpr int h = Half * 8;
    return __builtin_shufflevector(a, b, h, h + 16, h + 1, h + 17, h + 2, h + 18, h + 3, h + 19, h + 4, h + 20, h + 5,
                                   h + 21, h + 6, h + 22, h + 7, h + 23);
#elif MLPDEPLOY_VECTOR == 8
    constexpr int h = Half * 4;
    return __builtin_shufflevector(a, b, h, h + 8, h + 1, h + 9, h + 2, h + 10, h + 3, h + 11);
#else
    constexpr int h = Half * 2;
    return __builtin_shufflevector(a, b, h, h + 4, h + 1, h + 5);
#endif
}

// Turn a square of kVector x kVector floats over its diagonal: each step interleaves its two halves, and after as many
// steps as the size has bits every element is where its column was. Of a square that reaches over the edge only the
// first `rows` and `columns` are read and written.
template <bool Whole>
MLPDEPLOY_INLINE void turn(float const* from, long from_stride, long rows, long columns, float* to, long to_stride) {
    Vector square[kVector];
#pragma GCC unroll 16
    for (long i = 0; i < kVector; ++i) {
        square[i] = Whole      ? load(from + i * from_stride)
                    : i < rows ? load_first(from + i * from_stride, columns)
                               : Vector{};
    }
#pragma GCC unroll 4
    for (long step = 1; step < kVector; step *= 2) {
        Vector next[kVector];
#pragma GCC unroll 16
        for (long i = 0; i < kVector / 2; ++i) {
            next[2 * i] = interleave<0>(square[i], square[i + kVector / 2]);
            next[2 * i + 1] = interleave<1>(square[i], square[i + kVector / 2]);
        }
#pragma GCC unroll 16
        for (long i = 0; i < kVector; ++i) square[i] = next[i];
    }
#pragma GCC unroll 16
    for (long i = 0; i < kVector; ++i) {
        if (Whole) {
            store(to + i * to_stride, square[i]);
        } else if (i < columns) {
            store_first(to + i * to_stride, rows, square[i]);
        }
    }
}

// to: (columns, rows) <- from: (rows, columns)
MLPDEPLOY_INLINE void transpose(float const* from, long from_stride, long rows, long columns, float* to,
                                long to_stride) {
    for (long row = 0; row < rows; row += kVector) {
        for (long column = 0; column < columns; column += kVector) {
            float const* source = from + row * from_stride + column;
            float* target = to + column * to_stride + row;
            if (row + kVector <= rows && column + kVector <= columns) {
                turn<true>(source, from_stride, kVector, kVector, target, to_stride);
            } else {
                turn<false>(source, from_stride, rows - row < kVector ? rows - row : kVector,
                            columns - column < kVector ? columns - column : kVector, target, to_stride);
            }
        }
    }
}

void rows_from_planes(float const* planes, long plane_stride, long channels, long count, float* rows, long stride) {
    transpose(planes, plane_stride, channels, count, rows, stride);
    for (long row = 0; row < count; ++row) {
        for (long c = channels; c < stride; ++c) rows[row * stride + c] = 0.0F;
    }
}

void planes_from_rows(float const* rows, long stride, long channels, long count, float* planes, long plane_stride) {
    transpose(rows, stride, count, channels, planes, plane_stride);
}

}  // namespace

#define MLPDEPLOY_NAME_OF(isa) #isa
#define MLPDEPLOY_NAME(isa) MLPDEPLOY_NAME_OF(isa)
extern Kernels const kKernels;
Kernels const kKernels = {
    MLPDEPLOY_NAME(MLPDEPLOY_ISA),
    kPanel,
    sizeof(Operand),
    kDepthUnit,
    kRowUnit,
    kChunkRows,
    kFewPixels,
    kGroupPixels,
    pack,
    multiply,
    normalize,
    normalize_affine,
    normalize_gelu,
    moments,
    layer_norm,
    mean_of_rows,
    blend,
    copy_segments,
    shift,
    cycle,
    rows_from_planes,
    planes_from_rows,
};

}  // namespace mlpdeploy::cpu::MLPDEPLOY_ISA
