// What the operators are made of: functions on rows of channels, compiled once for each instruction set.
//
// A matrix of rows is channels-last: row p is a pixel, its channels follow each other, and rows lie `stride` floats
// apart: a multiple of 16, and room for a whole number of panels. A product writes zeros behind the last channel, up to
// the end of its last panel; what lies behind that is never used. All counts are of floats, rows or channels, never
// bytes.
#pragma once

namespace mlpdeploy::cpu {

// Rows of one unit of the statistics. Partial sums are taken over this many rows whoever computes them, so the result
// depends neither on the number of threads nor on the batch.
constexpr long kChunkRows = 14;

// What happens to a product and its bias before it is written.
enum class Finish { kStore, kGelu, kAddGelu, kAdd };

struct Product {
    float const* rows;  // (row_count, depth), row_stride apart
    long row_stride;
    long row_count;
    long depth;
    float const* panel;  // (depth, panel width): one column panel of the weights
    float const* bias;   // (panel width)
    float* out;          // (row_count, panel width), out_stride apart; kAddGelu and kAdd add to what is there
    long out_stride;
};

struct Moments {
    float mean;
    float squares;  // sum of squared distances from the mean
};

enum class Padding { kZero, kCircular, kReflect, kReplicate };

struct Shift {
    long size;
    long dilation;
    Padding padding;
};

// An image of rows: pixel (y, x) is row y * width + x.
struct Image {
    float const* rows;
    long stride;
    long channels;
    long height;
    long width;
};

// Segments of rows, to be copied: `count` of them, each `size` floats long, and so many floats from one to the next.
struct Segments {
    float const* from;
    long from_step;
    float* to;
    long to_step;
    long size;
    long count;
};

struct Kernels {
    char const* name;
    long panel;  // columns of a panel, and the unit of a row's stride

    // out = finish(rows x panel + bias). An element's sum runs over the depth in order, whatever else is computed.
    void (*multiply)(Finish finish, Product const& product);

    // y = (x - mean) * factor, on `count` floats, a multiple of 16; y may be x.
    void (*normalize)(float const* x, float* y, long count, float mean, float factor);

    // x = gelu((x - mean) * factor * scale + offset), in place; scale and offset: (stride).
    void (*normalize_gelu)(float* x, long row_count, long stride, float mean, float factor, float const* scale,
                           float const* offset);

    // Mean and squares of (row_count, channels), row_count at most kChunkRows.
    Moments (*moments)(float const* x, long row_count, long stride, long channels);

    // Each row on its own: x = (x - mean) / sqrt(variance + epsilon) * scale + offset, in place; scale and offset:
    // (stride).
    void (*layer_norm)(float* x, long row_count, long stride, long channels, float epsilon, float const* scale,
                       float const* offset);

    // out: (channels) = the mean of `row_count` rows, which lie `step` floats apart; in order.
    void (*mean_of_rows)(float const* rows, long step, long row_count, long channels, float* out);

    // c = c * gates[2] + h * gates[0] + w * gates[1], on rows `stride` apart; gates: (3, stride).
    void (*blend)(float* c, float const* h, float const* w, float const* gates, long row_count, long stride,
                  long channels);

    // Reads and writes the segments' floats only, unlike the other functions on rows.
    void (*copy_segments)(Segments const& segments);

    // The pixels [first, first + count) of an image shifted along W (along_width) or H: out: (count, stride).
    void (*shift)(Image const& image, Shift const& shift, bool along_width, long first, long count, float* out);

    // rows: (count, stride) <- planes: (channels, count), plane_stride apart; the rest of each row becomes zero.
    void (*rows_from_planes)(float const* planes, long plane_stride, long channels, long count, float* rows,
                             long stride);

    // planes: (channels, count), plane_stride apart <- rows: (count, stride).
    void (*planes_from_rows)(float const* rows, long stride, long channels, long count, float* planes,
                             long plane_stride);
};

// The kernels called `only`: avx512, avx2 or portable. Null for `only` means those that were measured to be faster than
// ONNX Runtime's own operators, avx512. Returns null if this processor has no such instructions.
Kernels const* choose_kernels(char const* only);

}  // namespace mlpdeploy::cpu
