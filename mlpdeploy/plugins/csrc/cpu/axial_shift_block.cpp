#include "axial_shift_block.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace mlpdeploy::cpu {
namespace {

// An image of fewer pixels is split over its columns instead of its rows: see run_by_columns.
constexpr long kFewPixels = 128;
// Samples of small images are computed together, up to about so many pixels.
constexpr long kGroupPixels = 256;

struct Statistics {
    float mean;
    float factor;  // 1 / standard deviation
};

// Merge the chunks' moments in their order (Chan's formula).
Statistics merge(Moments const* chunks, long pixels, long channels, float epsilon) {
    double count = 0;
    double mean = 0;
    double squares = 0;
    for (long first = 0; first < pixels; first += kChunkRows, ++chunks) {
        double const more = static_cast<double>(std::min(kChunkRows, pixels - first)) * static_cast<double>(channels);
        double const apart = static_cast<double>(chunks->mean) - mean;
        squares += static_cast<double>(chunks->squares) + apart * apart * count * more / (count + more);
        mean += apart * more / (count + more);
        count += more;
    }
    return {static_cast<float>(mean),
            static_cast<float>(1 / std::sqrt(squares / count + static_cast<double>(epsilon)))};
}

// Rows of one task: whole chunks, few enough that there is work for many threads, and enough that weights are reused.
long rows_of_task(long pixels) { return pixels >= 2048 ? 4 * kChunkRows : pixels >= 512 ? 2 * kChunkRows : kChunkRows; }

}  // namespace

// Samples that are computed together, and what they need.
struct AxialShiftBlock::Group {
    Host& host;
    float const* planes_in;
    float* planes_out;
    long samples;
    long height;
    long width;

    long pixels() const { return height * width; }
    long rows() const { return samples * pixels(); }
    long chunks() const { return (pixels() + kChunkRows - 1) / kChunkRows; }
};

AxialShiftBlock::AxialShiftBlock(Kernels const& kernels, long channels, long hidden, Shift const& shift, float epsilon,
                                 AxialShiftWeights const& w)
    : kernels_(&kernels),
      channels_(channels),
      hidden_(hidden),
      stride_(row_stride(kernels, channels)),
      hidden_stride_(row_stride(kernels, hidden)),
      shift_(shift),
      epsilon_(epsilon),
      conv1_(kernels, {w.conv1, channels, 1}, w.conv1_bias, channels, channels),
      conv2_w_(kernels, {w.conv2_w, channels, 1}, w.conv2_w_bias, channels, channels),
      conv2_h_(kernels, {w.conv2_h, channels, 1}, w.conv2_h_bias, channels, channels),
      conv3_(kernels, {w.conv3, channels, 1}, w.conv3_bias, channels, channels),
      fc1_(kernels, {w.fc1, channels, 1}, w.fc1_bias, channels, hidden),
      fc2_(kernels, {w.fc2, hidden, 1}, w.fc2_bias, hidden, channels),
      norm_scale_(aligned_floats(stride_)),
      norm_bias_(aligned_floats(stride_)) {
    std::copy_n(w.norm_scale, channels, norm_scale_.get());
    std::copy_n(w.norm_bias, channels, norm_bias_.get());
}

void AxialShiftBlock::run(Host& host, float const* x, float* y, long samples, long height, long width) const {
    long const pixels = height * width;
    if (pixels == 0) return;
    long const together = std::max(1L, kGroupPixels / pixels);
    for (long first = 0; first < samples; first += together) {
        long const offset = first * channels_ * pixels;
        Group group{host, x + offset, y + offset, std::min(together, samples - first), height, width};
        if (pixels < kFewPixels) {
            run_by_columns(group);
        } else {
            run_by_rows(group);
        }
    }
}

// A task is some rows of one sample, through as many steps as need no other row.
void AxialShiftBlock::run_by_rows(Group& group) const {
    Kernels const& k = *kernels_;
    long const pixels = group.pixels();
    long const chunks = group.chunks();
    long const task_rows = rows_of_task(pixels);
    long const tasks = (pixels + task_rows - 1) / task_rows;
    long const size = group.rows() * stride_;
    Scratch memory(group.host, 3 * size);
    float* x = memory.get();
    float* t = x + size;
    float* a = t + size;
    std::vector<Moments> moments(static_cast<std::size_t>(group.samples * chunks));
    std::vector<Statistics> norms(static_cast<std::size_t>(group.samples));

    struct Rows {
        long sample;
        long first;  // row of the sample
        long count;
        long offset;  // floats from the first row of the group
    };
    auto const for_rows = [&](auto const& step) {
        for_each(group.host, group.samples * tasks, [&](long task) {
            long const first = task % tasks * task_rows;
            Rows rows{task / tasks, first, std::min(task_rows, pixels - first), 0};
            rows.offset = (rows.sample * pixels + first) * stride_;
            step(rows);
        });
    };
    auto const measure = [&](Rows const& rows, float const* values) {
        for (long row = 0; row < rows.count; row += kChunkRows) {
            moments[static_cast<std::size_t>(rows.sample * chunks + (rows.first + row) / kChunkRows)] = k.moments(
                values + rows.offset + row * stride_, std::min(kChunkRows, rows.count - row), stride_, channels_);
        }
    };
    auto const merge_all = [&] {
        for (long s = 0; s < group.samples; ++s) {
            norms[static_cast<std::size_t>(s)] =
                merge(&moments[static_cast<std::size_t>(s * chunks)], pixels, channels_, epsilon_);
        }
    };
    auto const norm_of = [&](Rows const& rows) { return norms[static_cast<std::size_t>(rows.sample)]; };

    for_rows([&](Rows const& r) {
        float const* planes = group.planes_in + r.sample * channels_ * pixels + r.first;
        k.rows_from_planes(planes, pixels, channels_, r.count, x + r.offset, stride_);
        measure(r, x);
    });
    merge_all();
    for_rows([&](Rows const& r) {
        Scratch normal(group.host, r.count * stride_);
        k.normalize(x + r.offset, normal.get(), r.count * stride_, norm_of(r).mean, norm_of(r).factor);
        conv1_.multiply(Finish::kStore, normal.get(), stride_, r.count, a + r.offset, stride_, 0, conv1_.panels());
        measure(r, a);
    });
    merge_all();
    for_rows([&](Rows const& r) {
        k.normalize_gelu(a + r.offset, r.count, stride_, norm_of(r).mean, norm_of(r).factor, norm_scale_.get(),
                         norm_bias_.get());
    });
    for_rows([&](Rows const& r) {
        Scratch shifted(group.host, r.count * stride_);
        Image const image{a + r.sample * pixels * stride_, stride_, channels_, group.height, group.width};
        k.shift(image, shift_, true, r.first, r.count, shifted.get());
        conv2_w_.multiply(Finish::kGelu, shifted.get(), stride_, r.count, t + r.offset, stride_, 0, conv2_w_.panels());
        k.shift(image, shift_, false, r.first, r.count, shifted.get());
        conv2_h_.multiply(Finish::kAddGelu, shifted.get(), stride_, r.count, t + r.offset, stride_, 0,
                          conv2_h_.panels());
        measure(r, t);
    });
    merge_all();
    for_rows([&](Rows const& r) {
        float* normal = t + r.offset;
        k.normalize(normal, normal, r.count * stride_, norm_of(r).mean, norm_of(r).factor);
        conv3_.multiply(Finish::kAdd, normal, stride_, r.count, x + r.offset, stride_, 0, conv3_.panels());
        measure(r, x);
    });
    merge_all();
    for_rows([&](Rows const& r) {
        Scratch hidden(group.host, r.count * hidden_stride_);
        float* normal = t + r.offset;
        k.normalize(x + r.offset, normal, r.count * stride_, norm_of(r).mean, norm_of(r).factor);
        fc1_.multiply(Finish::kGelu, normal, stride_, r.count, hidden.get(), hidden_stride_, 0, fc1_.panels());
        fc2_.multiply(Finish::kAdd, hidden.get(), hidden_stride_, r.count, x + r.offset, stride_, 0, fc2_.panels());
        float* planes = group.planes_out + r.sample * channels_ * pixels + r.first;
        k.planes_from_rows(x + r.offset, stride_, channels_, r.count, planes, pixels);
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
    Scratch memory(group.host, 5 * size + rows * hidden_stride_);
    float* x = memory.get();
    float* t = x + size;
    float* along_w = t + size;
    float* along_h = along_w + size;
    float* hidden = along_h + size;
    float* a = hidden + rows * hidden_stride_;

    auto const for_samples = [&](auto const& step) {
        for_each(group.host, group.samples, [&](long s) { step(s, s * pixels * stride_); });
    };
    auto const normalize = [&](float const* from, float* to) {
        std::vector<Moments> moments(static_cast<std::size_t>(group.chunks()));
        for (long first = 0; first < pixels; first += kChunkRows) {
            moments[static_cast<std::size_t>(first / kChunkRows)] =
                k.moments(from + first * stride_, std::min(kChunkRows, pixels - first), stride_, channels_);
        }
        Statistics const norm = merge(moments.data(), pixels, channels_, epsilon_);
        if (to != nullptr) k.normalize(from, to, pixels * stride_, norm.mean, norm.factor);
        return norm;
    };
    auto const for_panels = [&](Dense const& dense, auto const& step) {
        for_each(group.host, dense.panels(), [&](long panel) { step(panel, panel + 1); });
    };

    for_samples([&](long s, long offset) {
        k.rows_from_planes(group.planes_in + s * channels_ * pixels, pixels, channels_, pixels, x + offset, stride_);
        normalize(x + offset, t + offset);
    });
    for_panels(conv1_, [&](long first, long last) {
        conv1_.multiply(Finish::kStore, t, stride_, rows, a, stride_, first, last);
    });
    for_samples([&](long, long offset) {
        Statistics const norm = normalize(a + offset, nullptr);
        k.normalize_gelu(a + offset, pixels, stride_, norm.mean, norm.factor, norm_scale_.get(), norm_bias_.get());
    });
    for_samples([&](long, long offset) {
        Image const image{a + offset, stride_, channels_, group.height, group.width};
        k.shift(image, shift_, true, 0, pixels, along_w + offset);
        k.shift(image, shift_, false, 0, pixels, along_h + offset);
    });
    for_panels(conv2_w_, [&](long first, long last) {
        conv2_w_.multiply(Finish::kGelu, along_w, stride_, rows, t, stride_, first, last);
        conv2_h_.multiply(Finish::kAddGelu, along_h, stride_, rows, t, stride_, first, last);
    });
    for_samples([&](long, long offset) { normalize(t + offset, t + offset); });
    for_panels(conv3_, [&](long first, long last) {
        conv3_.multiply(Finish::kAdd, t, stride_, rows, x, stride_, first, last);
    });
    for_samples([&](long, long offset) { normalize(x + offset, t + offset); });
    for_panels(fc1_, [&](long first, long last) {
        fc1_.multiply(Finish::kGelu, t, stride_, rows, hidden, hidden_stride_, first, last);
    });
    for_panels(fc2_, [&](long first, long last) {
        fc2_.multiply(Finish::kAdd, hidden, hidden_stride_, rows, x, stride_, first, last);
    });
    for_samples([&](long s, long offset) {
        k.planes_from_rows(x + offset, stride_, channels_, pixels, group.planes_out + s * channels_ * pixels, pixels);
    });
}

}  // namespace mlpdeploy::cpu
