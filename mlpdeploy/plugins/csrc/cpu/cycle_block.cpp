#include "cycle_block.h"

#include <algorithm>

namespace mlpdeploy::cpu {
namespace {

// Channel c is read (c + 1) % 3 - 1 pixels further on.
constexpr long kCycle = 3;

// The products, in the order of their matrices.
enum Products { kMlpW, kMlpH, kMlpC, kProj, kFc1, kFc2 };

// Copy a row, and zeros behind it up to `stride`.
void copy_row(float const* from, long channels, float* to, long stride) {
    std::copy_n(from, channels, to);
    std::fill_n(to + channels, stride - channels, 0.0F);
}

}  // namespace

struct CycleBlock::Group {
    Host& host;
    float const* x;
    float* y;
    long samples;
    long height;
    long width;
    char* normal;      // operands: (samples, height, width, operand_stride)
    float* h;          // (samples, height, width, stride): the branch along the height
    float* row_means;  // (samples, height, stride)
    float* means;      // (branches, samples, stride): of each branch over the image
    float* gates;      // (samples, 3, stride)

    long pixels() const { return height * width; }
};

CycleBlock::CycleBlock(Kernels const& kernels, Kernels const& float_kernels, CycleSizes const& sizes, float epsilon,
                       CycleWeights const& w)
    : kernels_(&kernels),
      float_kernels_(&float_kernels),
      sizes_(sizes),
      width_(round_up(sizes.channels, kernels.panel)),
      stride_(std::max(float_stride(kernels, sizes.channels), float_stride(float_kernels, sizes.channels))),
      operand_stride_(operand_stride(kernels, sizes.channels)),
      hidden_stride_(operand_stride(kernels, sizes.hidden)),
      epsilon_(epsilon),
      along_w_(kernels, {w.along_w, sizes.channels, 1}, w.along_w_bias, sizes.channels, sizes.channels,
               {w.steps[kMlpW], w.scales[kMlpW], {}}),
      along_h_(kernels, {w.along_h, sizes.channels, 1}, w.along_h_bias, sizes.channels, sizes.channels,
               {w.steps[kMlpH], w.scales[kMlpH], {}}),
      in_place_(kernels, {w.in_place, sizes.channels, 1}, nullptr, sizes.channels, sizes.channels,
                {w.steps[kMlpC], w.scales[kMlpC], {}}),
      gates_(float_kernels, w.gate, sizes.channels, sizes.gate_hidden),
      proj_(kernels, {w.proj, 1, sizes.channels}, w.proj_bias, sizes.channels, sizes.channels,
            {w.steps[kProj], w.scales[kProj], {}}),
      fc1_(kernels, {w.fc1, 1, sizes.hidden}, w.fc1_bias, sizes.channels, sizes.hidden,
           {w.steps[kFc1], w.scales[kFc1], w.scales[kFc2]}),
      fc2_(kernels, {w.fc2, 1, sizes.channels}, w.fc2_bias, sizes.hidden, sizes.channels,
           {w.steps[kFc2], w.scales[kFc2], {}}),
      norms_(aligned_floats(4 * stride_)) {
    std::copy_n(w.scales, 6, scales_);
    float const* const branches[] = {w.along_w, w.along_h, w.in_place};
    float const* const biases[] = {w.along_w_bias, w.along_h_bias, nullptr};
    for (long i = 0; i < kBranches && &float_kernels != &kernels; ++i) {
        in_float_[i] = std::make_unique<Dense>(
            float_kernels,
            Matrix{in_floats(branches[i], w.steps[i], sizes.channels, sizes.channels).data(), sizes.channels, 1},
            biases[i], sizes.channels, sizes.channels);
    }
    float const* const vectors[] = {w.norm1_scale, w.norm1_bias, w.norm2_scale, w.norm2_bias};
    for (long i = 0; i < 4; ++i) std::copy_n(vectors[i], sizes.channels, norms_.get() + i * stride_);
}

void CycleBlock::run(Host& host, float const* x, float* y, long samples, long height, long width) const {
    long const pixels = height * width;
    if (samples < 1 || pixels < 1) return;
    long const together = std::max(1L, std::min(samples, kernels_->group_pixels / pixels));
    for (long first = 0; first < samples; first += together) {
        long const offset = first * pixels * sizes_.channels;
        long const count = std::min(together, samples - first);
        if (pixels < kernels_->few_pixels) {
            run_by_columns(host, x + offset, y + offset, count, height, width);
        } else {
            run_by_rows(host, x + offset, y + offset, count, height, width);
        }
    }
}

// The group, and its memory. A task's rows begin anywhere, and a product
// reads whole units from there on.
struct CycleBlock::Buffers {
    Scratch memory;
    Group group;

    Buffers(CycleBlock const& block, Host& host, float const* x, float* y, long samples, long height, long width)
        : memory(host, operand_floats(*block.kernels_, samples * height * width + block.kernels_->row_unit - 1,
                                      block.operand_stride_) +
                           samples * (height * width + height + kBranches + 3) * block.stride_),
          group{host, x, y, samples, height, width, nullptr, memory.get(), nullptr, nullptr, nullptr} {
        group.row_means = group.h + samples * height * width * block.stride_;
        group.means = group.row_means + samples * height * block.stride_;
        group.gates = group.means + kBranches * samples * block.stride_;
        group.normal = reinterpret_cast<char*>(group.gates + 3 * samples * block.stride_);
    }
};

// A task is some rows of one sample, through as many steps as need no other row.
void CycleBlock::run_by_rows(Host& host, float const* x, float* y, long samples, long height, long width) const {
    Buffers const buffers(*this, host, x, y, samples, height, width);
    Group const& group = buffers.group;
    long const task_rows = rows_of_task(*kernels_, group.pixels());
    long const tasks = (group.pixels() + task_rows - 1) / task_rows;
    auto const for_part = [&](long task, auto const& step) {
        long const first = task % tasks * task_rows;
        step(task / tasks, first, std::min(task_rows, group.pixels() - first));
    };
    for_each(host, samples * height, [&](long row) { normalize(group, row); });
    // What the gates need is known by now; the branch does not need them.
    for_each(host, kBranches + samples * tasks, [&](long i) {
        if (i < kBranches) {
            average_branch(group, i);
        } else {
            for_part(i - kBranches,
                     [&](long sample, long first, long rows) { mix_along_height(group, sample, first, rows); });
        }
    });
    for_each(host, samples, [&](long sample) { compute_gates(group, sample); });
    for_each(host, samples * tasks, [&](long task) {
        for_part(task, [&](long sample, long first, long rows) { finish_rows(group, sample, first, rows); });
    });
}

// Small images have so many channels that the weights are most of the traffic: a task of a product is a panel of the
// weights with all rows, so that each thread reads its part of them only.
void CycleBlock::run_by_columns(Host& host, float const* x, float* y, long samples, long height, long width) const {
    Kernels const& k = *kernels_;
    Buffers const buffers(*this, host, x, y, samples, height, width);
    Group const& group = buffers.group;
    long const channels = sizes_.channels;
    long const pixels = group.pixels();
    long const rows = samples * pixels;
    long const operands = operand_floats(k, rows, operand_stride_);
    Scratch memory(host, 3 * rows * stride_ + 2 * operands + operand_floats(k, rows, hidden_stride_));
    float* const along_w = memory.get();
    float* const mixed = along_w + rows * stride_;
    float* const sums = mixed + rows * stride_;
    char* const moved_w = reinterpret_cast<char*>(sums + rows * stride_);
    char* const moved_h = reinterpret_cast<char*>(sums + rows * stride_ + operands);
    float* const hidden = sums + rows * stride_ + 2 * operands;
    auto const for_lines = [&](auto const& step) {
        for_each(host, samples * height, [&](long line) { step(line * width, line / height, line % height * width); });
    };
    auto const for_panels = [&](Dense const& dense, auto const& step) {
        for_each(host, dense.panels(), [&](long panel) { step(Panels{panel, panel + 1}); });
    };

    for_each(host, samples * height, [&](long row) { normalize(group, row); });
    for_each(host, kBranches + samples * height, [&](long i) {
        if (i < kBranches) return average_branch(group, i);
        long const sample = (i - kBranches) / height;
        long const first = (i - kBranches) % height * width;
        Image const image{
            operand(group.normal, sample * pixels), operand_stride_, channels, height, width, scales_[kMlpW]};
        k.cycle(image, true, first, width, operand(moved_w, sample * pixels + first));
        k.cycle(image, false, first, width, operand(moved_h, sample * pixels + first));
        for (long row = sample * pixels + first; row < sample * pixels + first + width; ++row)
            copy_row(group.x + row * channels, channels, sums + row * stride_, stride_);
    });
    for_each(host, samples + along_w_.panels(), [&](long i) {
        if (i < samples) return compute_gates(group, i);
        Panels const panels{i - samples, i - samples + 1};
        along_w_.multiply(Finish::kStore, moved_w, operand_stride_, rows, along_w, stride_, nullptr, panels);
        along_h_.multiply(Finish::kStore, moved_h, operand_stride_, rows, group.h, stride_, nullptr, panels);
        in_place_.multiply(Finish::kStore, group.normal, operand_stride_, rows, mixed, stride_, nullptr, panels);
    });
    for_lines([&](long row, long sample, long) {
        k.blend({mixed + row * stride_, stride_, width, width_, operand(moved_w, row), operand_stride_, scales_[kProj]},
                along_w + row * stride_, group.h + row * stride_, group.gates + 3 * sample * stride_);
        pad(operand(moved_w, row), width);
    });
    for_panels(proj_, [&](Panels panels) {
        proj_.multiply(Finish::kAdd, moved_w, operand_stride_, rows, sums, stride_, nullptr, panels);
    });
    for_lines([&](long row, long, long) {
        k.layer_norm(
            {sums + row * stride_, stride_, width, width_, operand(moved_w, row), operand_stride_, scales_[kFc1]},
            channels, epsilon_, norms_.get() + 2 * stride_, norms_.get() + 3 * stride_);
    });
    for_panels(fc1_, [&](Panels panels) {
        fc1_.multiply(Finish::kGeluOperand, moved_w, operand_stride_, rows, hidden, hidden_stride_, nullptr, panels);
    });
    for_panels(fc2_, [&](Panels panels) {
        fc2_.multiply(Finish::kAdd, hidden, hidden_stride_, rows, sums, stride_, nullptr, panels);
    });
    for_lines([&](long first, long, long) {
        for (long row = first; row < first + width; ++row)
            std::copy_n(sums + row * stride_, channels, group.y + row * channels);
    });
}

Dense const& CycleBlock::branch(long index) const {
    Dense const* const own[] = {&along_w_, &along_h_, &in_place_};
    return in_float_[index] != nullptr ? *in_float_[index] : *own[index];
}

char* CycleBlock::operand(char* rows, long row) const { return rows + row * operand_stride_ * kernels_->operand_bytes; }

// Zeros behind the channels of some rows of operands, as far as products read.
void CycleBlock::pad(char* rows, long count) const {
    long const behind = round_up(sizes_.channels, kernels_->depth_unit) - sizes_.channels;
    for (long row = 0; row < count && behind > 0; ++row)
        std::fill_n(operand(rows, row) + sizes_.channels * kernels_->operand_bytes, behind * kernels_->operand_bytes,
                    '\0');
}

// The first norm of one row of pixels, and the mean over it.
void CycleBlock::normalize(Group const& group, long row) const {
    long const count = group.width;
    char* const normal = operand(group.normal, row * count);
    Scratch const pixels(group.host, count * stride_);
    for (long i = 0; i < count; ++i)
        copy_row(group.x + (row * count + i) * sizes_.channels, sizes_.channels, pixels.get() + i * stride_, stride_);
    kernels_->layer_norm({pixels.get(), stride_, count, width_, normal, operand_stride_, scales_[kMlpW]},
                         sizes_.channels, epsilon_, norms_.get(), norms_.get() + stride_);
    kernels_->mean_of_rows(normal, operand_stride_, count, sizes_.channels, scales_[kMlpW],
                           group.row_means + row * stride_);
}

// The mean of a branch over the image of each sample, in float, whatever the operands are. A mean of products is a
// product with the mean, and where channels have moved, the mean lacks the line that moved out of the image.
void CycleBlock::average_branch(Group const& group, long index) const {
    Kernels const& k = *float_kernels_;
    long const channels = sizes_.channels;
    Scratch const memory(group.host, (group.samples + 2) * stride_);
    float* const of_input = memory.get();
    float* const lines[] = {of_input + group.samples * stride_, of_input + (group.samples + 1) * stride_};
    for (long sample = 0; sample < group.samples; ++sample) {
        float* const mean = of_input + sample * stride_;
        float const* const row_means = group.row_means + sample * group.height * stride_;
        k.mean_of_rows(row_means, stride_, group.height, channels, {}, mean);
        if (index == kInPlace) continue;
        for (long end = 0; end < 2; ++end) {  // the first line and the last
            if (index == kAlongH) {
                std::copy_n(row_means + end * (group.height - 1) * stride_, channels, lines[end]);
            } else {
                char const* const column = operand(group.normal, sample * group.pixels() + end * (group.width - 1));
                kernels_->mean_of_rows(column, group.width * operand_stride_, group.height, channels, scales_[kMlpW],
                                       lines[end]);
            }
        }
        float const share = 1.0F / static_cast<float>(index == kAlongH ? group.height : group.width);
        for (long c = 1; c < channels; c += kCycle) mean[c] -= share * lines[0][c];
        for (long c = 2; c < channels; c += kCycle) mean[c] -= share * lines[1][c];
    }
    branch(index).multiply(Finish::kStore, of_input, stride_, group.samples,
                           group.means + index * group.samples * stride_, stride_);
}

// The gates of a sample, from the means of its branches.
void CycleBlock::compute_gates(Group const& group, long sample) const {
    float* const sum = group.means + sample * stride_;
    for (long i = 1; i < kBranches; ++i) {
        float const* const more = group.means + (i * group.samples + sample) * stride_;
        for (long c = 0; c < sizes_.channels; ++c) sum[c] += more[c];
    }
    gates_.compute(group.host, sum, group.gates + 3 * sample * stride_, stride_);
}

// The branch along the height, for some pixels of an image.
void CycleBlock::mix_along_height(Group const& group, long sample, long first, long rows) const {
    Scratch const memory(group.host, operand_floats(*kernels_, rows, operand_stride_));
    Image const image{operand(group.normal, sample * group.pixels()),
                      operand_stride_,
                      sizes_.channels,
                      group.height,
                      group.width,
                      scales_[kMlpH]};
    kernels_->cycle(image, false, first, rows, memory.get());
    along_h_.multiply(Finish::kStore, memory.get(), operand_stride_, rows,
                      group.h + (sample * group.pixels() + first) * stride_, stride_);
}

// Everything else, for some pixels of an image: the other branches, the projection and the MLP.
void CycleBlock::finish_rows(Group const& group, long sample, long first, long rows) const {
    Kernels const& k = *kernels_;
    long const channels = sizes_.channels;
    long const first_pixel = sample * group.pixels() + first;
    Scratch memory(group.host, 3 * rows * stride_ + operand_floats(k, rows, operand_stride_) +
                                   operand_floats(k, rows, hidden_stride_));
    float* const along_w = memory.get();
    float* const mixed = along_w + rows * stride_;
    float* const x = mixed + rows * stride_;
    char* const operands = reinterpret_cast<char*>(x + rows * stride_);
    float* const hidden = x + rows * stride_ + operand_floats(k, rows, operand_stride_);

    Image const image{operand(group.normal, sample * group.pixels()),
                      operand_stride_,
                      channels,
                      group.height,
                      group.width,
                      scales_[kMlpW]};
    k.cycle(image, true, first, rows, operands);
    along_w_.multiply(Finish::kStore, operands, operand_stride_, rows, along_w, stride_);
    in_place_.multiply(Finish::kStore, operand(group.normal, first_pixel), operand_stride_, rows, mixed, stride_);
    k.blend({mixed, stride_, rows, width_, operands, operand_stride_, scales_[kProj]}, along_w,
            group.h + first_pixel * stride_, group.gates + 3 * sample * stride_);
    pad(operands, rows);

    for (long row = 0; row < rows; ++row)
        copy_row(group.x + (first_pixel + row) * channels, channels, x + row * stride_, stride_);
    proj_.multiply(Finish::kAdd, operands, operand_stride_, rows, x, stride_);
    k.layer_norm({x, stride_, rows, width_, operands, operand_stride_, scales_[kFc1]}, channels, epsilon_,
                 norms_.get() + 2 * stride_, norms_.get() + 3 * stride_);
    fc1_.multiply(Finish::kGeluOperand, operands, operand_stride_, rows, hidden, hidden_stride_);
    fc2_.multiply(Finish::kAdd, hidden, hidden_stride_, rows, x, stride_);
    for (long row = 0; row < rows; ++row)
        std::copy_n(x + row * stride_, channels, group.y + (first_pixel + row) * channels);
}

}  // namespace mlpdeploy::cpu
