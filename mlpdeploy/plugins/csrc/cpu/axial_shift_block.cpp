#include "axial_shift_block.h"

#include <algorithm>

#include "sample_norm.h"

namespace mlpdeploy::cpu {
namespace {

// The products, in the order of their matrices.
enum Products { kConv1, kConv2W, kConv2H, kConv3, kFc1, kFc2 };

// Units of the statistics in a task between two products that are shared out over their columns.
constexpr long kColumnChunks = 2;

}  // namespace

// Samples that are computed together, and what they need.
struct AxialShiftBlock::Group {
    Host& host;
    float const* in;
    float* out;
    long samples;
    long height;
    long width;

    long pixels() const { return height * width; }
    long rows() const { return samples * pixels(); }
};

// Some rows of one sample.
struct AxialShiftBlock::Part {
    long sample;
    long first;  // of the sample
    long count;
    long row;  // of the group
};

// What goes through the block and is added to: in the tensors themselves where their rows are made of whole panels.
struct AxialShiftBlock::Stream {
    float const* in;  // the block's input
    float* x;         // the same or, from the first residual on, its sum with what was added
    long stride;
    bool copied;
};

AxialShiftBlock::AxialShiftBlock(Kernels const& kernels, Layout layout, long channels, long hidden, Shift const& shift,
                                 float epsilon, AxialShiftWeights const& w)
    : kernels_(&kernels),
      layout_(layout),
      channels_(channels),
      hidden_(hidden),
      width_(round_up(channels, kernels.panel)),
      stride_(float_stride(kernels, channels)),
      operand_stride_(operand_stride(kernels, channels)),
      hidden_stride_(operand_stride(kernels, hidden)),
      shift_(shift),
      epsilon_(epsilon),
      conv1_(kernels, {w.conv1, channels, 1}, w.conv1_bias, channels, channels,
             {w.steps[kConv1], w.scales[kConv1], {}}),
      conv2_w_(kernels, {w.conv2_w, channels, 1}, w.conv2_w_bias, channels, channels,
               {w.steps[kConv2W], w.scales[kConv2W], {}}),
      conv2_h_(kernels, {w.conv2_h, channels, 1}, w.conv2_h_bias, channels, channels,
               {w.steps[kConv2H], w.scales[kConv2H], {}}),
      conv3_(kernels, {w.conv3, channels, 1}, w.conv3_bias, channels, channels,
             {w.steps[kConv3], w.scales[kConv3], {}}),
      fc1_(kernels, {w.fc1, channels, 1}, w.fc1_bias, channels, hidden,
           {w.steps[kFc1], w.scales[kFc1], w.scales[kFc2]}),
      fc2_(kernels, {w.fc2, hidden, 1}, w.fc2_bias, hidden, channels, {w.steps[kFc2], w.scales[kFc2], {}}),
      norm_scale_(aligned_floats(stride_)),
      norm_bias_(aligned_floats(stride_)) {
    std::copy_n(w.norm_scale, channels, norm_scale_.get());
    std::copy_n(w.norm_bias, channels, norm_bias_.get());
    std::copy_n(w.scales, 6, scales_);
}

void AxialShiftBlock::run(Host& host, float const* x, float* y, long samples, long height, long width) const {
    long const pixels = height * width;
    if (pixels == 0) return;
    long const together = std::max(1L, kernels_->group_pixels / pixels);
    for (long first = 0; first < samples; first += together) {
        long const offset = first * channels_ * pixels;
        Group group{host, x + offset, y + offset, std::min(together, samples - first), height, width};
        if (pixels < kernels_->few_pixels) {
            run_by_columns(group);
        } else {
            run_by_rows(group);
        }
    }
}

// Where the block's input becomes rows, and rows its output; floats of `memory` are taken if the tensors cannot serve.
AxialShiftBlock::Stream AxialShiftBlock::stream_of(Group const& group, float*& memory) const {
    if (layout_ == Layout::kRows && channels_ == width_) return {group.in, group.out, channels_, false};
    float* const x = memory;
    memory += group.rows() * stride_;
    return {x, x, stride_, true};
}

// The pixels [first, first + count) of a sample, from the tensor to rows.
void AxialShiftBlock::enter(Group const& group, Stream const& stream, long sample, long first, long count) const {
    if (!stream.copied) return;
    long const pixels = group.pixels();
    float const* const from = group.in + sample * channels_ * pixels;
    float* const rows = stream.x + (sample * pixels + first) * stream.stride;
    if (layout_ == Layout::kPlanes) {
        kernels_->rows_from_planes(from + first, pixels, channels_, count, rows, stream.stride);
    } else {
        for (long row = 0; row < count; ++row) {
            float* const end = std::copy_n(from + (first + row) * channels_, channels_, rows + row * stream.stride);
            std::fill_n(end, stream.stride - channels_, 0.0F);
        }
    }
}

// The same pixels, from rows to the tensor.
void AxialShiftBlock::leave(Group const& group, Stream const& stream, long sample, long first, long count) const {
    if (!stream.copied) return;
    long const pixels = group.pixels();
    float* const to = group.out + sample * channels_ * pixels;
    float const* const rows = stream.x + (sample * pixels + first) * stream.stride;
    if (layout_ == Layout::kPlanes) {
        kernels_->planes_from_rows(rows, stream.stride, channels_, count, to + first, pixels);
    } else {
        for (long row = 0; row < count; ++row)
            std::copy_n(rows + row * stream.stride, channels_, to + (first + row) * channels_);
    }
}

// Call step(Part) on the host's threads for every `size` rows of each sample.
template <typename Step>
void AxialShiftBlock::for_each_part(Group const& group, long size, Step const& step) {
    long const pixels = group.pixels();
    long const parts = (pixels + size - 1) / size;
    for_each(group.host, group.samples * parts, [&](long task) {
        long const sample = task / parts;
        long const first = task % parts * size;
        step(Part{sample, first, std::min(size, pixels - first), sample * pixels + first});
    });
}

// A task is some rows of one sample, through as many steps as need no other row.
void AxialShiftBlock::run_by_rows(Group& group) const {
    Kernels const& k = *kernels_;
    long const pixels = group.pixels();
    long const size = group.rows() * stride_;
    bool const in_place = k.operand_bytes == sizeof(float);
    Scratch memory(group.host, 3 * size + (in_place ? 0 : operand_floats(k, group.rows(), operand_stride_)));
    float* next = memory.get();
    Stream const stream = stream_of(group, next);
    float* const y = next;
    float* const t = in_place ? y + size : y;  // y is done with when t begins, but for its place
    void* const a = in_place ? y : y + size;
    Norms norms(k, group.samples, pixels, channels_, epsilon_);
    auto const for_parts = [&](auto const& step) { for_each_part(group, rows_of_task(k, pixels), step); };
    auto const measure_part = [&](Part const& p, float const* values, long stride) {
        norms.measure(p.sample, p.first, p.count, values + p.row * stride, stride);
    };
    // Operands of a part of the rows, for one step.
    auto const operands = [&](Part const& p) {
        return Scratch(group.host, operand_floats(k, p.count, operand_stride_));
    };
    auto const normalize = [&](Part const& p, float const* values, long stride, void* to, Products product) {
        Statistics const norm = norms.of(p.sample);
        k.normalize({values + p.row * stride, stride, p.count, width_, to, operand_stride_, scales_[product]},
                    norm.mean, norm.factor);
    };
    long const x_stride = stream.stride;

    for_parts([&](Part const& p) {
        enter(group, stream, p.sample, p.first, p.count);
        measure_part(p, stream.in, x_stride);
    });
    norms.merge();
    for_parts([&](Part const& p) {
        Scratch const normal = operands(p);
        normalize(p, stream.in, x_stride, normal.get(), kConv1);
        conv1_.multiply(Finish::kStore, normal.get(), operand_stride_, p.count, y + p.row * stride_, stride_);
        measure_part(p, y, stride_);
    });
    norms.merge();
    for_parts([&](Part const& p) {
        void* const to = static_cast<char*>(a) + p.row * operand_stride_ * k.operand_bytes;
        Statistics const norm = norms.of(p.sample);
        k.normalize_gelu({y + p.row * stride_, stride_, p.count, width_, to, operand_stride_, scales_[kConv2W]},
                         norm.mean, norm.factor, norm_scale_.get(), norm_bias_.get());
    });
    for_parts([&](Part const& p) {
        Scratch const shifted = operands(p);
        float* const out = t + p.row * stride_;
        char const* const sample = static_cast<char const*>(a) + p.sample * pixels * operand_stride_ * k.operand_bytes;
        Image const image{sample, operand_stride_, channels_, group.height, group.width, scales_[kConv2W]};
        k.shift(image, shift_, true, p.first, p.count, shifted.get());
        conv2_w_.multiply(Finish::kGelu, shifted.get(), operand_stride_, p.count, out, stride_);
        k.shift(image, shift_, false, p.first, p.count, shifted.get());
        conv2_h_.multiply(Finish::kAddGelu, shifted.get(), operand_stride_, p.count, out, stride_);
        measure_part(p, t, stride_);
    });
    norms.merge();
    for_parts([&](Part const& p) {
        Scratch const normal = operands(p);
        normalize(p, t, stride_, normal.get(), kConv3);
        conv3_.multiply(Finish::kAdd, normal.get(), operand_stride_, p.count, stream.x + p.row * x_stride, x_stride,
                        stream.in + p.row * x_stride);
        measure_part(p, stream.x, x_stride);
    });
    norms.merge();
    for_parts([&](Part const& p) {
        Scratch const normal = operands(p);
        Scratch const hidden(group.host, operand_floats(k, p.count, hidden_stride_));
        float* const rows = stream.x + p.row * x_stride;
        normalize(p, stream.x, x_stride, normal.get(), kFc1);
        fc1_.multiply(Finish::kGeluOperand, normal.get(), operand_stride_, p.count, hidden.get(), hidden_stride_);
        fc2_.multiply(Finish::kAdd, hidden.get(), hidden_stride_, p.count, rows, x_stride, rows);
        leave(group, stream, p.sample, p.first, p.count);
    });
}

// Small images have so many channels that the weights are most of the traffic: a task of a product is a few panels of
// the weights with all rows, so that each thread reads its part of them only. The steps between the products are tasks
// of some rows of a sample.
void AxialShiftBlock::run_by_columns(Group& group) const {
    Kernels const& k = *kernels_;
    long const pixels = group.pixels();
    long const rows = group.rows();
    long const size = rows * stride_;
    long const operands = operand_floats(k, rows, operand_stride_);
    bool const in_place = k.operand_bytes == sizeof(float);
    Scratch memory(group.host, 3 * size + (in_place ? 3 : 4) * operands + operand_floats(k, rows, hidden_stride_));
    float* next = memory.get();
    Stream const stream = stream_of(group, next);
    float* const t = next;
    float* const y = t + size;
    float* const along_w = y + size;
    float* const along_h = along_w + operands;
    float* const normal = along_h + operands;
    float* const hidden = normal + operands;
    void* const a = in_place ? y : hidden + operand_floats(k, rows, hidden_stride_);
    long const x_stride = stream.stride;
    Norms norms(k, group.samples, pixels, channels_, epsilon_);

    auto const operand = [&](void* matrix, long row) {
        return static_cast<char*>(matrix) + row * operand_stride_ * k.operand_bytes;
    };
    auto const for_parts = [&](auto const& step) { for_each_part(group, kColumnChunks * k.chunk_rows, step); };
    auto const normalize = [&](float const* from, long stride, Products product) {
        for_parts([&](Part const& p) {
            Statistics const norm = norms.of(p.sample);
            k.normalize({from + p.row * stride, stride, p.count, width_, operand(normal, p.row), operand_stride_,
                         scales_[product]},
                        norm.mean, norm.factor);
        });
    };
    auto const measure_all = [&](float const* from, long stride) {
        for_parts([&](Part const& p) { norms.measure(p.sample, p.first, p.count, from + p.row * stride, stride); });
        norms.merge();
    };
    auto const for_panels = [&](Dense const& dense, auto const& step) {
        for_each(group.host, dense.panels(), [&](long panel) { step(Panels{panel, panel + 1}); });
    };

    for_parts([&](Part const& p) {
        enter(group, stream, p.sample, p.first, p.count);
        norms.measure(p.sample, p.first, p.count, stream.in + p.row * x_stride, x_stride);
    });
    norms.merge();
    normalize(stream.in, x_stride, kConv1);
    for_panels(conv1_, [&](Panels panels) {
        conv1_.multiply(Finish::kStore, normal, operand_stride_, rows, y, stride_, nullptr, panels);
    });
    measure_all(y, stride_);
    for_parts([&](Part const& p) {
        Statistics const norm = norms.of(p.sample);
        k.normalize_gelu(
            {y + p.row * stride_, stride_, p.count, width_, operand(a, p.row), operand_stride_, scales_[kConv2W]},
            norm.mean, norm.factor, norm_scale_.get(), norm_bias_.get());
    });
    for_parts([&](Part const& p) {
        Image const image{
            operand(a, p.sample * pixels), operand_stride_, channels_, group.height, group.width, scales_[kConv2W]};
        k.shift(image, shift_, true, p.first, p.count, operand(along_w, p.row));
        k.shift(image, shift_, false, p.first, p.count, operand(along_h, p.row));
    });
    for_panels(conv2_w_, [&](Panels panels) {
        conv2_w_.multiply(Finish::kGelu, along_w, operand_stride_, rows, t, stride_, nullptr, panels);
        conv2_h_.multiply(Finish::kAddGelu, along_h, operand_stride_, rows, t, stride_, nullptr, panels);
    });
    measure_all(t, stride_);
    normalize(t, stride_, kConv3);
    for_panels(conv3_, [&](Panels panels) {
        conv3_.multiply(Finish::kAdd, normal, operand_stride_, rows, stream.x, x_stride, stream.in, panels);
    });
    measure_all(stream.x, x_stride);
    normalize(stream.x, x_stride, kFc1);
    for_panels(fc1_, [&](Panels panels) {
        fc1_.multiply(Finish::kGeluOperand, normal, operand_stride_, rows, hidden, hidden_stride_, nullptr, panels);
    });
    for_panels(fc2_, [&](Panels panels) {
        fc2_.multiply(Finish::kAdd, hidden, hidden_stride_, rows, stream.x, x_stride, stream.x, panels);
    });
    if (stream.copied) for_parts([&](Part const& p) { leave(group, stream, p.sample, p.first, p.count); });
}

}  // namespace mlpdeploy::cpu
