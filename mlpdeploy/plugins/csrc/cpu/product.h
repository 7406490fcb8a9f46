// The products: column panels of packed weights, and what happens to a sum before it is written.
#pragma once

#include "gelu.h"
#include "kernels.h"
#include "operand.h"
#include "vector.h"

namespace mlpdeploy::cpu::MLPDEPLOY_ISA {

constexpr bool has_gelu(Finish kind) { return kind != Finish::kStore && kind != Finish::kAdd; }

// Write two vectors, a product's last values, to a row and column of the output.
template <Finish Kind>
MLPDEPLOY_INLINE void write(Product const& p, long row, long column, Vector left, Vector right) {
    long const place = row * p.out_stride + column;
    if (Kind == Finish::kGeluOperand) {
        store_operands(static_cast<Operand*>(p.out) + place, left, right);
        return;
    }
    float* const out = static_cast<float*>(p.out) + place;
    if (Kind == Finish::kAdd || Kind == Finish::kAddGelu) {
        float const* const there = Kind == Finish::kAdd ? p.added + place : out;
        left += load(there);
        right += load(there + kVector);
    }
    store(out, left);
    store(out + kVector, right);
}

// Finish rows of sums, bias among them, each of two vectors.
template <Finish Kind, int Count>
MLPDEPLOY_INLINE void finish(Product const& p, long row, long column, Vector (&sums)[Count]) {
    if (has_gelu(Kind)) gelu(sums);
#pragma GCC unroll 16
    for (int i = 0; i < Count; i += 2) write<Kind>(p, row + i / 2, column, sums[i], sums[i + 1]);
}

}  // namespace mlpdeploy::cpu::MLPDEPLOY_ISA

#if defined(__AMX_BF16__)
#include "product_tiles.h"
#else
#include "product_vectors.h"
#endif

namespace mlpdeploy::cpu::MLPDEPLOY_ISA {

static void multiply(Finish kind, Product const& p) {
    switch (kind) {
        case Finish::kStore:
            return multiply_as<Finish::kStore>(p);
        case Finish::kGelu:
            return multiply_as<Finish::kGelu>(p);
        case Finish::kGeluOperand:
            return multiply_as<Finish::kGeluOperand>(p);
        case Finish::kAddGelu:
            return multiply_as<Finish::kAddGelu>(p);
        case Finish::kAdd:
            return multiply_as<Finish::kAdd>(p);
    }
}

static void pack(float const* weights, long column_step, long depth_step, long columns, long depth, void* panel) {
    Operand* to = static_cast<Operand*>(panel);
    long const padded = (depth + kDepthUnit - 1) / kDepthUnit * kDepthUnit;
    for (long column = 0; column < kPanel; ++column) {
        for (long k = 0; k < padded; ++k) {
            bool const there = column < columns && k < depth;
            to[packed_place(column, k)] =
                there ? operand_of(weights[column * column_step + k * depth_step]) : operand_of(0.0F);
        }
    }
}

}  // namespace mlpdeploy::cpu::MLPDEPLOY_ISA
