#include "axial_shift_block.h"

#include <algorithm>
#include <vector>

#include "sample_norm.h"

namespace mlpdeploy::cpu {
namespace {

// The products, in the order of their matrices.
enum Products { kConv1, kConv2W, kConv2H, kConv3, kFc1, kFc2 };

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

// A task is some rows of one sample, through as many steps as need no other row.
void AxialShiftBlock::run_by_rows(Group& group) const {
    Kernels const& k = *kernels_;
    long const pixels = group.pixels();
    long const chunks = chunks_of(k, pixels);
    long const task_rows = rows_of_task(k, pixels);
    long const tasks = (pixels + task_rows - 1) / task_rows;
    long const size = group.rows() * stride_;
    bool const in_place = k.operand_bytes == sizeof(float);
    Scratch memory(group.host, 3 * size + (in_place ? 0 : operand_floats(k, group.rows(), operand_stride_)));
    float* next = memory.get();
    Stream const stream = stream_of(group, next);
    float* const y = next;
    float* const t = in_place ? y + size : y;  // y is done with when t begins, but for its place
    void* const a = in_place ? y : y + size;
    std::vector<Moments> moments(static_cast<std::size_t>(group.samples * chunks));
    std::vector<Statistics> norms(static_cast<std::size_t>(group.samples));

    struct Part {
        long sample;
        long first;  // row of the sample
        long count;
        long row;  // of the group
        Statistics norm;
    };
    auto const for_parts = [&](auto const& step) {
        for_each(group.host, group.samples * tasks, [&](long task) {
            long const sample = task / tasks;
            long const first = task % tasks * task_rows;
            step(Part{sample, first, std::min(task_rows, pixels - first), sample * pixels + first,
                      norms[static_cast<std::size_t>(sample)]});
        });
    };
    auto const measure_part = [&](Part const& p, float const* values, long stride) {
        measure(k, values + p.row * stride, p.count, stride, channels_,
                &moments[static_cast<std::size_t>(p.sample * chunks + p.first / k.chunk_rows)]);
    };
    auto const merge_all = [&] {
        for (long s = 0; s < group.samples; ++s) {
            norms[static_cast<std::size_t>(s)] =
                merge(k, &moments[static_cast<std::size_t>(s * chunks)], pixels, channels_, epsilon_);
        }
    };
    // Operands of a part of the rows, for one step.
    auto const operands = [&](Part const& p) {
        return Scratch(group.host, operand_floats(k, p.count, operand_stride_));
    };
    auto const normalize = [&](Part const& p, float const* values, long stride, void* to, Products product) {
        k.normalize({values + p.row * stride, stride, p.count, width_, to, operand_stride_, scales_[product]},
                    p.norm.mean, p.norm.factor);
    };
    long const x_stride = stream.stride;

    for_parts([&](Part const& p) {
        enter(group, stream, p.sample, p.first, p.count);
        measure_part(p, stream.in, x_stride);
    });
    merge_all();
    for_parts([&](Part const& p) {
        Scratch const normal = operands(p);
        normalize(p, stream.in, x_stride, normal.get(), kConv1);
        conv1_.multiply(Finish::kStore, normal.get(), operand_stride_, p.count, y + p.row * stride_, stride_);
        measure_part(p, y, stride_);
    });
    merge_all();
    for_parts([&](Part const& p) {
        void* const to = static_cast<char*>(a) + p.row * operand_stride_ * k.operand_bytes;
        k.normalize_gelu({y + p.row * stride_, stride_, p.count, width_, to, operand_stride_, scales_[kConv2W]},
                         p.norm.mean, p.norm.factor, norm_scale_.get(), norm_bias_.get());
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
    merge_all();
    for_parts([&](Part const& p) {
        Scratch const normal = operands(p);
        normalize(p, t, stride_, normal.get(), kConv3);
        conv3_.multiply(Finish::kAdd, normal.get(), operand_stride_, p.count, stream.x + p.row * x_stride, x_stride,
                        stream.in + p.row * x_stride);
        measure_part(p, stream.x, x_stride);
    });
    merge_all();
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
// the weights with all rows, so that each thread reads its part of them only. The steps between the products are a task
// per sample.
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

    auto const operand = [&](void* matrix, long row) {
        return static_cast<char*>(matrix) + row * operand_stride_ * k.operand_bytes;
    };
    auto const for_samples = [&](auto const& step) {
        for_each(group.host, group.samples, [&](long s) { step(s, s * pixels); });
    };
    auto const statistics = [&](float const* from, long stride) {
        std::vector<Moments> moments(static_cast<std::size_t>(chunks_of(k, pixels)));
        measure(k, from, pixels, stride, channels_, moments.data());
        return merge(k, moments.data(), pixels, channels_, epsilon_);
    };
    auto const normalize = [&](float const* from, long stride, long row, Products product) {
        Statistics const norm = statistics(from + row * stride, stride);
        k.normalize(
            {from + row * stride, stride, pixels, width_, operand(normal, row), operand_stride_, scales_[product]},
            norm.mean, norm.factor);
    };
    auto const for_panels = [&](Dense const& dense, auto const& step) {
        for_each(group.host, dense.panels(), [&](long panel) { step(Panels{panel, panel + 1}); });
    };

    for_samples([&](long s, long row) {
        enter(group, stream, s, 0, pixels);
        normalize(stream.in, x_stride, row, kConv1);
    });
    for_panels(conv1_, [&](Panels panels) {
        conv1_.multiply(Finish::kStore, normal, operand_stride_, rows, y, stride_, nullptr, panels);
    });
    for_samples([&](long, long row) {
        Statistics const norm = statistics(y + row * stride_, stride_);
        k.normalize_gelu(
            {y + row * stride_, stride_, pixels, width_, operand(a, row), operand_stride_, scales_[kConv2W]}, norm.mean,
            norm.factor, norm_scale_.get(), norm_bias_.get());
    });
    for_samples([&](long, long row) {
        Image const image{operand(a, row), operand_stride_, channels_, group.height, group.width, scales_[kConv2W]};
        k.shift(image, shift_, true, 0, pixels, operand(along_w, row));
        k.shift(image, shift_, false, 0, pixels, operand(along_h, row));
    });
    for_panels(conv2_w_, [&](Panels panels) {
        conv2_w_.multiply(Finish::kGelu, along_w, operand_stride_, rows, t, stride_, nullptr, panels);
        conv2_h_.multiply(Finish::kAddGelu, along_h, operand_stride_, rows, t, stride_, nullptr, panels);
    });
    for_samples([&](long, long row) { normalize(t, stride_, row, kConv3); });
    for_panels(conv3_, [&](Panels panels) {
        conv3_.multiply(Finish::kAdd, normal, operand_stride_, rows, stream.x, x_stride, stream.in, panels);
    });
    for_samples([&](long, long row) { normalize(stream.x, x_stride, row, kFc1); });
    for_panels(fc1_, [&](Panels panels) {
        fc1_.multiply(Finish::kGeluOperand, normal, operand_stride_, rows, hidden, hidden_stride_, nullptr, panels);
    });
    for_panels(fc2_, [&](Panels panels) {
        fc2_.multiply(Finish::kAdd, hidden, hidden_stride_, rows, stream.x, x_stride, stream.x, panels);
    });
    for_samples([&](long s, long) { leave(group, stream, s, 0, pixels); });
}

}  // namespace mlpdeploy::cpu
