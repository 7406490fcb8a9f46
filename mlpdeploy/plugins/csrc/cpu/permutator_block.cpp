#include "permutator_block.h"

#include <algorithm>
#include <vector>

namespace mlpdeploy::cpu {
namespace {

// Rows of one task: so many that the weights are read from a cache, and that there is work for several threads.
constexpr long kTaskRows = 64;
// Samples of small images are computed together, up to about so many pixels.
constexpr long kGroupPixels = 256;

// The branches, in the order of their matrices.
enum Branches { kMlpH, kMlpW, kMlpC };

// The mean over the pixels (out / segment) of a branch's weights, in floats: row s' is the mean of the rows (pixel,
// s'). A mean of products is a product with the mean, so the gates need no branch in full.
std::vector<float> mean_over_pixels(std::vector<float> const& weights, long channels, long segment) {
    std::vector<float> means(static_cast<std::size_t>(segment * channels));
    std::vector<double> sums(static_cast<std::size_t>(channels));
    for (long s = 0; s < segment; ++s) {
        std::fill(sums.begin(), sums.end(), 0.0);
        for (long out = s; out < channels; out += segment) {
            for (long in = 0; in < channels; ++in)
                sums[static_cast<std::size_t>(in)] +=
                    static_cast<double>(weights[static_cast<std::size_t>(out * channels + in)]);
        }
        double const pixels = static_cast<double>(channels / segment);
        for (long in = 0; in < channels; ++in)
            means[static_cast<std::size_t>(s * channels + in)] =
                static_cast<float>(sums[static_cast<std::size_t>(in)] / pixels);
    }
    return means;
}

}  // namespace

struct PermutatorBlock::Group {
    Host& host;
    float const* x;
    float* y;
    char* normal;      // operands: (samples, side, side, operand_stride)
    float* h;          // (samples, side, side, stride): the branch along the height
    float* row_means;  // (samples, side, stride)
    float* gates;      // (samples, 3, stride)
};

PermutatorBlock::PermutatorBlock(Kernels const& kernels, Kernels const& float_kernels, PermutatorSizes const& sizes,
                                 float epsilon, PermutatorWeights const& w)
    : TokenBlock(kernels, float_kernels, sizes, epsilon, w),
      side_(sizes.side),
      segment_(sizes.channels / sizes.side),
      mlp_h_(kernels, {w.mlp_h, channels_, 1}, nullptr, channels_, channels_, {w.steps[kMlpH], w.scales[kMlpH], {}}),
      mlp_w_(kernels, {w.mlp_w, channels_, 1}, nullptr, channels_, channels_, {w.steps[kMlpW], w.scales[kMlpW], {}}),
      mlp_c_(kernels, {w.mlp_c, channels_, 1}, nullptr, channels_, channels_, {w.steps[kMlpC], w.scales[kMlpC], {}}),
      mean_h_(float_kernels,
              {mean_over_pixels(branch_in_floats(w.mlp_h, w.steps[kMlpH]), channels_, segment_).data(), channels_, 1},
              nullptr, channels_, segment_),
      mean_w_(float_kernels,
              {mean_over_pixels(branch_in_floats(w.mlp_w, w.steps[kMlpW]), channels_, segment_).data(), channels_, 1},
              nullptr, channels_, segment_) {
    if (&float_kernels != &kernels) {
        mean_c_ = std::make_unique<Dense>(float_kernels,
                                          Matrix{branch_in_floats(w.mlp_c, w.steps[kMlpC]).data(), channels_, 1},
                                          nullptr, channels_, channels_);
    }
}

void PermutatorBlock::run(Host& host, float const* x, float* y, long samples) const {
    long const side = side_;
    long const pixels = side * side;
    long const together = std::max(1L, std::min(samples, kGroupPixels / pixels));
    long const lines = std::max(1L, kTaskRows / side);  // of an image, or columns of it, that a task takes
    long const tasks = (side + lines - 1) / lines;
    long const size = together * pixels * stride_;
    // A task's rows begin anywhere, and a product reads whole units from there on.
    long const most_rows = together * pixels + kernels_->row_unit - 1;
    Scratch memory(host,
                   operand_floats(*kernels_, most_rows, operand_stride_) + size + together * (side + 3) * stride_);
    float* const h = memory.get();
    float* const row_means = h + size;
    float* const gates = row_means + together * side * stride_;
    char* const normal = reinterpret_cast<char*>(gates + together * 3 * stride_);
    for (long first = 0; first < samples; first += together) {
        long const offset = first * pixels * channels_;
        long const count = std::min(together, samples - first);
        Group const group{host, x + offset, y + offset, normal, h, row_means, gates};
        auto const last_line = [&](long task) { return std::min(side, (task % tasks + 1) * lines); };
        for_each(host, count * side, [&](long row) {
            normalize(host, group.x + row * side * channels_, side, operand(normal, row * side),
                      row_means + row * stride_);
        });
        // What the gates need is known by now; the branch does not need them.
        for_each(host, count * (1 + tasks), [&](long i) {
            long const task = i - count;
            if (task < 0) {
                find_gates(group, i);
            } else {
                mix_along_height(group, task / tasks, task % tasks * lines, last_line(task));
            }
        });
        for_each(host, count * tasks,
                 [&](long task) { finish_rows(group, task / tasks, task % tasks * lines, last_line(task)); });
    }
}

// The gates of one sample, from the means of its rows and columns: in float, whatever the operands are.
void PermutatorBlock::find_gates(Group const& group, long sample) const {
    Kernels const& k = *float_kernels_;
    long const side = side_;
    float const* const row_means = group.row_means + sample * side * stride_;
    long const mixed_stride = float_stride(k, segment_);
    Scratch memory(group.host, (2 * side + 2) * stride_ + side * mixed_stride);
    float* const column_means = memory.get();
    float* const rows = column_means + side * stride_;
    float* const mean = rows + side * stride_;
    float* const sum = mean + stride_;
    float* const mixed = sum + stride_;

    for (long i = 0; i < side; ++i)
        kernels_->mean_of_rows(operand(group.normal, sample * side * side + i), side * operand_stride_, side, channels_,
                               scales_[kMlpH], column_means + i * stride_);
    k.mean_of_rows(row_means, stride_, side, channels_, {}, mean);
    Dense const& mean_c = mean_c_ != nullptr ? *mean_c_ : mlp_c_;
    mean_c.multiply(Finish::kStore, mean, stride_, 1, sum, stride_);
    auto const add_mean_of_branch = [&](Dense const& branch, float const* means) {
        for (long g = 0; g < side; ++g)
            k.copy_segments({means + g * segment_, stride_, rows + g * stride_, segment_, segment_, side});
        branch.multiply(Finish::kStore, rows, stride_, side, mixed, mixed_stride);
        for (long c = 0; c < channels_; ++c) sum[c] += mixed[c / segment_ * mixed_stride + c % segment_];
    };
    add_mean_of_branch(mean_h_, row_means);
    add_mean_of_branch(mean_w_, column_means);
    compute_gates(group.host, sum, group.gates + 3 * sample * stride_);
}

// The branch along the height, for the columns [first, last) of an image: a product's row is one segment of a column.
void PermutatorBlock::mix_along_height(Group const& group, long sample, long first, long last) const {
    Kernels const& k = *kernels_;
    long const side = side_;
    long const rows = (last - first) * side;
    Scratch memory(group.host, rows * stride_ + operand_floats(k, rows, operand_stride_));
    float* const mixed = memory.get();
    char* const gathered = reinterpret_cast<char*>(mixed + rows * stride_);
    char* const normal = operand(group.normal, sample * side * side);
    float* const h = group.h + sample * side * side * stride_;
    for (long row = 0; row < rows; ++row) {
        char const* const from = operand(normal, first + row / side) + row % side * segment_ * k.operand_bytes;
        k.copy_segments({from, side * operand_stride_, operand(gathered, row), segment_, segment_, side});
    }
    pad(gathered, rows);
    mlp_h_.multiply(Finish::kStore, gathered, operand_stride_, rows, mixed, stride_);
    for (long row = 0; row < rows; ++row) {
        float* const to = h + (first + row / side) * stride_ + row % side * segment_;
        float_kernels_->copy_segments({mixed + row * stride_, segment_, to, side * stride_, segment_, side});
    }
}

// Everything else, for the rows [first, last) of an image: the other branches, the projection and the MLP.
void PermutatorBlock::finish_rows(Group const& group, long sample, long first, long last) const {
    Kernels const& k = *kernels_;
    long const side = side_;
    long const first_pixel = (sample * side + first) * side;
    long const rows = (last - first) * side;
    char* const normal = operand(group.normal, first_pixel);
    long const operand_count = operand_floats(k, rows, operand_stride_);
    Scratch memory(group.host, 2 * rows * stride_ + operand_count + finish_floats(rows));
    float* const along_w = memory.get();
    float* const mixed = along_w + rows * stride_;
    char* const operands = reinterpret_cast<char*>(mixed + rows * stride_);

    // Here a product's row is one segment of an image's row.
    for (long row = 0; row < rows; ++row) {
        char const* const from = operand(normal, row / side * side) + row % side * segment_ * k.operand_bytes;
        k.copy_segments({from, operand_stride_, operand(operands, row), segment_, segment_, side});
    }
    pad(operands, rows);
    mlp_w_.multiply(Finish::kStore, operands, operand_stride_, rows, mixed, stride_);
    for (long row = 0; row < rows; ++row) {
        float* const to = along_w + row / side * side * stride_ + row % side * segment_;
        float_kernels_->copy_segments({mixed + row * stride_, segment_, to, stride_, segment_, side});
    }
    mlp_c_.multiply(Finish::kStore, normal, operand_stride_, rows, mixed, stride_);
    blend(mixed, group.h + first_pixel * stride_, along_w, group.gates + 3 * sample * stride_, rows, operands);
    finish(operands, rows, group.x + first_pixel * channels_, mixed + rows * stride_ + operand_count,
           group.y + first_pixel * channels_);
}

}  // namespace mlpdeploy::cpu
