// What the operators are made of: functions on rows of channels, compiled once for each instruction set.
//
// A matrix of rows is channels-last: row p is a pixel, its channels follow each other, and rows lie `stride` values
// apart, which is room for a whole number of panels. A product writes zeros behind the last channel, up to the end of
// its last panel; what lies behind that is never used. All counts are of values, rows or channels, never bytes.
//
// What a product multiplies are operands: float, bfloat16, or 8 bits, unsigned in the rows and signed in the weights.
// Sums of 8-bit products are exact; statistics and everything that is added up are float.
#pragma once

namespace mlpdeploy::cpu {

// What happens to a product and its bias before it is written.
enum class Finish {
    kStore,
    kGelu,
    kGeluOperand,  // written as operands
    kAddGelu,      // added to what is there
    kAdd,          // added to Product::added
};

// What 8-bit operands stand for: (operand - zero) * step. Other operands are what they are.
struct Scale {
    float step = 1;
    float zero = 0;  // a whole number from 0 to 255
};

struct Product {
    void const* rows;  // operands: (row_count, depth), row_stride apart
    long row_stride;
    long row_count;
    long depth;
    void const* panels;  // the first of the column panels, see Kernels::pack
    long panel_count;
    float const* scales;  // (panel_count * panel): what 8-bit sums are multiplied with; others are not
    float const* bias;    // (panel_count * panel)
    void* out;            // floats or, for kGeluOperand, operands: (row_count, panel_count * panel), out_stride apart
    long out_stride;
    float const* added;  // what kAdd adds to: like out, or out itself
    Scale out_scale;     // of kGeluOperand
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

// An image of rows of operands: pixel (y, x) is row y * width + x.
struct Image {
    void const* rows;
    long stride;
    long channels;
    long height;
    long width;
    Scale scale;
};

// Rows of floats, and what becomes of them: operands, `width` of each row. The two may be the same memory if an operand
// is a float.
struct Rows {
    float const* from;
    long from_stride;
    long count;
    long width;  // a multiple of the panel's
    void* to;
    long to_stride;
    Scale scale;  // of what is written
};

// Segments of rows of operands, to be copied: `count` of them, each `size` long, and so many from one to the next.
struct Segments {
    void const* from;
    long from_step;
    void* to;
    long to_step;
    long size;
    long count;
};

struct Kernels {
    char const* name;
    long panel;          // columns of a panel
    long operand_bytes;  // of one operand
    long depth_unit;     // a product's depth is padded to a multiple of this, with operands that are any numbers
    long row_unit;       // rows that a product may read at once: memory for operands ends behind a whole number of them
    // Rows of one unit of the statistics. Partial sums are taken over this many rows whoever computes them, so the
    // result depends neither on the number of threads nor on the batch.
    long chunk_rows;
    // An image of fewer pixels is shared out over the columns of the products instead of over its rows, because there
    // the weights are most of the traffic.
    long few_pixels;
    long group_pixels;  // samples of small images are computed together, up to about so many pixels

    // panel <- (columns, depth) of weights, whose steps are in floats. Both are padded with zeros. Weights of 8 bits
    // are whole numbers from -127 to 127.
    void (*pack)(float const* weights, long column_step, long depth_step, long columns, long depth, void* panel);

    // out = finish(rows x panels * scales + bias). An element's sum runs over the depth in an order that depends on
    // nothing else.
    void (*multiply)(Finish finish, Product const& product);

    // to = (from - mean) * factor
    void (*normalize)(Rows const& rows, float mean, float factor);

    // to = (from - mean) * factor * scale + offset; scale and offset: (width).
    void (*normalize_affine)(Rows const& rows, float mean, float factor, float const* scale, float const* offset);

    // to = gelu((from - mean) * factor * scale + offset).
    void (*normalize_gelu)(Rows const& rows, float mean, float factor, float const* scale, float const* offset);

    // Mean and squares of (row_count, channels), row_count at most chunk_rows.
    Moments (*moments)(float const* x, long row_count, long stride, long channels);

    // Each row on its own: to = (from - mean) / sqrt(variance + epsilon) * scale + offset; scale and offset: (width).
    void (*layer_norm)(Rows const& rows, long channels, float epsilon, float const* scale, float const* offset);

    // out: (channels, in whole panels) = the mean of `row_count` rows of operands, which lie `step` apart; in order.
    void (*mean_of_rows)(void const* rows, long step, long row_count, long channels, Scale const& scale, float* out);

    // to = from * gates[2] + h * gates[0] + w * gates[1]; h and w lie like `from`; gates: (3, from_stride).
    void (*blend)(Rows const& rows, float const* h, float const* w, float const* gates);

    // Reads and writes the segments only, unlike the other functions on rows.
    void (*copy_segments)(Segments const& segments);

    // The pixels [first, first + count) of an image shifted along W (along_width) or H: operands, (count, stride).
    void (*shift)(Image const& image, Shift const& shift, bool along_width, long first, long count, void* out);

    // Likewise with zeros outside of the image, where channel c is read (c + 1) % 3 - 1 pixels further on.
    void (*cycle)(Image const& image, bool along_width, long first, long count, void* out);

    // rows: (count, stride) <- planes: (channels, count), plane_stride apart; the rest of each row becomes zero.
    void (*rows_from_planes)(float const* planes, long plane_stride, long channels, long count, float* rows,
                             long stride);

    // planes: (channels, count), plane_stride apart <- rows: (count, stride).
    void (*planes_from_rows)(float const* rows, long stride, long channels, long count, float* planes,
                             long plane_stride);
};

enum class Operands { kFloat, kBfloat16, kInt8 };

// The kernels called `only`: avx512, avx2 or portable; amx, avx512bf16 or avx512round for bfloat16; amxint8,
// avx512vnni, avxvnni or avx2int8 for 8 bits. Null for `only` means those that were measured to be faster than ONNX
// Runtime's own operators: avx512 before avx2; for bfloat16 amx before avx512bf16, if that is fast here, before
// avx512round; for 8 bits amxint8 before avx512vnni before avxvnni. Returns null if this processor has no such
// instructions, or the compiler had none.
Kernels const* choose_kernels(Operands operands, char const* only);

}  // namespace mlpdeploy::cpu
