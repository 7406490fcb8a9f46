#include "cycle_block.h"

#include <algorithm>

namespace mlpdeploy::cpu {
namespace {

// Channel c is read (c + 1) % 3 - 1 pixels further on.
constexpr long kCycle = 3;

// The branches, in the order of their matrices.
enum Branches { kAlongW, kAlongH, kInPlace };

}  // namespace

// Samples that are computed together, and their memory.
struct CycleBlock::Group {
    float const* x;
    float* y;
    long samples;
    long height;
    long width;
    Scratch memory;
    float* h;          // (samples, height, width, stride): the branch along the height
    float* row_means;  // (samples, height, stride)
    float* means;      // (branches, samples, stride): of each branch over the image
    float* gates;      // (samples, 3, stride)
    char* normal;      // operands: (samples, height, width, operand_stride)
    Host& host;

    Group(CycleBlock const& block, Host& the_host, float const* from, float* to, long count, long rows, long columns)
        : x(from),
          y(to),
          samples(count),
          height(rows),
          width(columns),
          // A task's rows begin anywhere, and a product reads whole units from there on.
          memory(the_host, operand_floats(*block.kernels_, count * rows * columns + block.kernels_->row_unit - 1,
                                          block.operand_stride_) +
                               count * (rows * columns + rows + kBranches + 3) * block.stride_),
          h(memory.get()),
          row_means(h + count * rows * columns * block.stride_),
          means(row_means + count * rows * block.stride_),
          gates(means + kBranches * count * block.stride_),
          normal(reinterpret_cast<char*>(gates + 3 * count * block.stride_)),
          host(the_host) {}

    long pixels() const { return height * width; }

    // The normalized pixels of a sample.
    Image image(CycleBlock const& block, long sample) const {
        return {block.operand(normal, sample * pixels()),
                block.operand_stride_,
                block.channels_,
                height,
                width,
                block.scales_[kAlongW]};
    }
};

CycleBlock::CycleBlock(Kernels const& kernels, Kernels const& float_kernels, TokenSizes const& sizes, float epsilon,
                       CycleWeights const& w)
    : TokenBlock(kernels, float_kernels, sizes, epsilon, w),
      branches_{{kernels,
                 {w.along_w, channels_, 1},
                 w.along_w_bias,
                 channels_,
                 channels_,
                 {w.steps[kAlongW], w.scales[kAlongW], {}}},
                {kernels,
                 {w.along_h, channels_, 1},
                 w.along_h_bias,
                 channels_,
                 channels_,
                 {w.steps[kAlongH], w.scales[kAlongH], {}}},
                {kernels,
                 {w.in_place, channels_, 1},
                 nullptr,
                 channels_,
                 channels_,
                 {w.steps[kInPlace], w.scales[kInPlace], {}}}} {
    float const* const matrices[] = {w.along_w, w.along_h, w.in_place};
    float const* const biases[] = {w.along_w_bias, w.along_h_bias, nullptr};
    for (long i = 0; i < kBranches && &float_kernels != &kernels; ++i) {
        in_float_[i] = std::make_unique<Dense>(float_kernels,
                                               Matrix{branch_in_floats(matrices[i], w.steps[i]).data(), channels_, 1},
                                               biases[i], channels_, channels_);
    }
}

void CycleBlock::run(Host& host, float const* x, float* y, long samples, long height, long width) const {
    long const pixels = height * width;
    if (samples < 1 || pixels < 1) return;
    long const together = std::max(1L, std::min(samples, kernels_->group_pixels / pixels));
    for (long first = 0; first < samples; first += together) {
        long const offset = first * pixels * channels_;
        Group const group(*this, host, x + offset, y + offset, std::min(together, samples - first), height, width);
        for_each(host, group.samples * height, [&](long line) {
            normalize(host, group.x + line * width * channels_, width, operand(group.normal, line * width),
                      group.row_means + line * stride_);
        });
        if (pixels < kernels_->few_pixels) {
            run_by_columns(group);
        } else {
            run_by_rows(group);
        }
    }
}

// A task is some rows of one sample, through as many steps as need no other row.
void CycleBlock::run_by_rows(Group const& group) const {
    long const task_rows = rows_of_task(*kernels_, group.pixels());
    long const tasks = (group.pixels() + task_rows - 1) / task_rows;
    auto const for_part = [&](long task, auto const& step) {
        long const first = task % tasks * task_rows;
        step(task / tasks, first, std::min(task_rows, group.pixels() - first));
    };
    // What the gates need is known by now; the branch does not need them.
    for_each(group.host, kBranches + group.samples * tasks, [&](long i) {
        if (i < kBranches) return average_branch(group, i);
        for_part(i - kBranches,
                 [&](long sample, long first, long rows) { mix_along_height(group, sample, first, rows); });
    });
    for_each(group.host, group.samples, [&](long sample) { find_gates(group, sample); });
    for_each(group.host, group.samples * tasks, [&](long task) {
        for_part(task, [&](long sample, long first, long rows) { finish_rows(group, sample, first, rows); });
    });
}

// Small images have so many channels that the weights are most of the traffic: a task of a product is a panel of the
// weights with all rows, so that each thread reads its part of them only.
void CycleBlock::run_by_columns(Group const& group) const {
    long const width = group.width;
    long const rows = group.samples * group.pixels();
    long const operands = operand_floats(*kernels_, rows, operand_stride_);
    Scratch memory(group.host, 3 * rows * stride_ + 2 * operands + operand_floats(*kernels_, rows, hidden_stride_));
    float* const along_w = memory.get();
    float* const in_place = along_w + rows * stride_;
    float* const copies = in_place + rows * stride_;
    float* const sums = whole_ ? group.y : copies;
    char* const moved_w = reinterpret_cast<char*>(copies + rows * stride_);  // and then what goes into the next product
    char* const moved_h = reinterpret_cast<char*>(copies + rows * stride_ + operands);
    float* const hidden = copies + rows * stride_ + 2 * operands;
    float* const results[] = {along_w, group.h, in_place};
    char const* const moved[] = {moved_w, moved_h, group.normal};
    auto const for_lines = [&](auto const& step) {
        for_each(group.host, group.samples * group.height, [&](long line) { step(line * width, line / group.height); });
    };
    auto const for_panels = [&](Dense const& dense, auto const& step) {
        for_each(group.host, dense.panels(), [&](long panel) { step(Panels{panel, panel + 1}); });
    };

    for_each(group.host, kBranches + group.samples * group.height, [&](long i) {
        if (i < kBranches) return average_branch(group, i);
        long const row = (i - kBranches) * width;
        Image const image = group.image(*this, row / group.pixels());
        kernels_->cycle(image, true, row % group.pixels(), width, operand(moved_w, row));
        kernels_->cycle(image, false, row % group.pixels(), width, operand(moved_h, row));
        enter(group.x + row * channels_, width, sums + row * sum_stride_);
    });
    for_each(group.host, group.samples + branches_[0].panels(), [&](long i) {
        if (i < group.samples) return find_gates(group, i);
        Panels const panels{i - group.samples, i - group.samples + 1};
        for (long k = 0; k < kBranches; ++k)
            branches_[k].multiply(Finish::kStore, moved[k], operand_stride_, rows, results[k], stride_, nullptr,
                                  panels);
    });
    for_lines([&](long row, long sample) {
        blend(in_place + row * stride_, along_w + row * stride_, group.h + row * stride_,
              group.gates + 3 * sample * stride_, width, operand(moved_w, row));
    });
    for_panels(proj_, [&](Panels panels) {
        proj_.multiply(Finish::kAdd, moved_w, operand_stride_, rows, sums, sum_stride_, whole_ ? group.x : sums,
                       panels);
    });
    for_lines([&](long row, long) { normalize_again(sums + row * sum_stride_, width, operand(moved_w, row)); });
    for_panels(fc1_, [&](Panels panels) {
        fc1_.multiply(Finish::kGeluOperand, moved_w, operand_stride_, rows, hidden, hidden_stride_, nullptr, panels);
    });
    for_panels(fc2_, [&](Panels panels) {
        fc2_.multiply(Finish::kAdd, hidden, hidden_stride_, rows, sums, sum_stride_, nullptr, panels);
    });
    if (!whole_) for_lines([&](long row, long) { leave(sums + row * stride_, width, group.y + row * channels_); });
}

// The mean of a branch over the image of each sample, in float, whatever the operands are. A mean of products is a
// product with the mean, and where channels have moved, the mean lacks the line that moved out of the image.
void CycleBlock::average_branch(Group const& group, long branch) const {
    Kernels const& k = *float_kernels_;
    Scratch const memory(group.host, (group.samples + 2) * stride_);
    float* const of_input = memory.get();
    float* const lines[] = {of_input + group.samples * stride_, of_input + (group.samples + 1) * stride_};
    for (long sample = 0; sample < group.samples; ++sample) {
        float* const mean = of_input + sample * stride_;
        float const* const row_means = group.row_means + sample * group.height * stride_;
        k.mean_of_rows(row_means, stride_, group.height, channels_, {}, mean);
        if (branch == kInPlace) continue;
        for (long end = 0; end < 2; ++end) {  // the first line and the last
            if (branch == kAlongH) {
                std::copy_n(row_means + end * (group.height - 1) * stride_, channels_, lines[end]);
            } else {
                char const* const column = operand(group.normal, sample * group.pixels() + end * (group.width - 1));
                kernels_->mean_of_rows(column, group.width * operand_stride_, group.height, channels_, scales_[kAlongW],
                                       lines[end]);
            }
        }
        float const share = 1.0F / static_cast<float>(branch == kAlongH ? group.height : group.width);
        for (long c = 1; c < channels_; c += kCycle) mean[c] -= share * lines[0][c];
        for (long c = 2; c < channels_; c += kCycle) mean[c] -= share * lines[1][c];
    }
    Dense const& dense = in_float_[branch] != nullptr ? *in_float_[branch] : branches_[branch];
    dense.multiply(Finish::kStore, of_input, stride_, group.samples, group.means + branch * group.samples * stride_,
                   stride_);
}

// The gates of a sample, from the means of its branches.
void CycleBlock::find_gates(Group const& group, long sample) const {
    float* const sum = group.means + sample * stride_;
    for (long branch = 1; branch < kBranches; ++branch) {
        float const* const more = group.means + (branch * group.samples + sample) * stride_;
        for (long c = 0; c < channels_; ++c) sum[c] += more[c];
    }
    compute_gates(group.host, sum, group.gates + 3 * sample * stride_);
}

// The branch along the height, for some pixels of an image.
void CycleBlock::mix_along_height(Group const& group, long sample, long first, long rows) const {
    Scratch const moved(group.host, operand_floats(*kernels_, rows, operand_stride_));
    kernels_->cycle(group.image(*this, sample), false, first, rows, moved.get());
    branches_[kAlongH].multiply(Finish::kStore, moved.get(), operand_stride_, rows,
                                group.h + (sample * group.pixels() + first) * stride_, stride_);
}

// Everything else, for some pixels of an image: the other branches, the projection and the MLP.
void CycleBlock::finish_rows(Group const& group, long sample, long first, long rows) const {
    long const first_pixel = sample * group.pixels() + first;
    long const operand_count = operand_floats(*kernels_, rows, operand_stride_);
    Scratch memory(group.host, 2 * rows * stride_ + operand_count + finish_floats(rows));
    float* const along_w = memory.get();
    float* const in_place = along_w + rows * stride_;
    char* const operands = reinterpret_cast<char*>(in_place + rows * stride_);

    kernels_->cycle(group.image(*this, sample), true, first, rows, operands);
    branches_[kAlongW].multiply(Finish::kStore, operands, operand_stride_, rows, along_w, stride_);
    branches_[kInPlace].multiply(Finish::kStore, operand(group.normal, first_pixel), operand_stride_, rows, in_place,
                                 stride_);
    blend(in_place, along_w, group.h + first_pixel * stride_, group.gates + 3 * sample * stride_, rows, operands);
    finish(operands, rows, group.x + first_pixel * channels_, in_place + rows * stride_ + operand_count,
           group.y + first_pixel * channels_);
}

}  // namespace mlpdeploy::cpu
