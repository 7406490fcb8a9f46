// The products: column panels of packed weights, and what happens to a sum before it is written.
#pragma once

#include "gelu.h"
#include "kernels.h"
#include "operand.h"
#include "vector.h"

namespace mlpdeploy::cpu::MLPDEPLOY_ISA {

constexpr bool has_gelu(Finish kind) { return kind != Finish::kStore && kind != Finish::kAdd; }

// What products are summed up in, and a vector of it.
#ifdef MLPDEPLOY_INT8
typedef int Sum;
#else
typedef float Sum;
#endif
typedef Sum Sums __attribute__((vector_size(MLPDEPLOY_VECTOR * sizeof(Sum))));

// Two vectors of columns, and what belongs to them.
struct Columns {
    long first;
#if defined(MLPDEPLOY_INT8) || defined(MLPDEPLOY_WHOLE_OPERANDS)
    Vector scale[2];
#endif
    Vector bias[2];
    Steps steps;

    MLPDEPLOY_METHOD Columns(Product const& p, long column) : first(column), steps(p.out_scale) {
        for (int i = 0; i < 2; ++i) {
#if defined(MLPDEPLOY_INT8) || defined(MLPDEPLOY_WHOLE_OPERANDS)
            scale[i] = load(p.scales + column + i * kVector);
#endif
            bias[i] = load(p.bias + column + i * kVector);
        }
    }

    // A sum of the first vector, or the second.
    MLPDEPLOY_METHOD Vector value(Sums sums, int i) const {
#if defined(MLPDEPLOY_INT8)
        return __builtin_convertvector(sums, Vector) * scale[i] + bias[i];
#elif defined(MLPDEPLOY_WHOLE_OPERANDS)
        return sums * scale[i] + bias[i];
#else
        return sums + bias[i];
#endif
    }
};

// Write two vectors, a product's last values, to a row and column of the output.
template <Finish Kind>
MLPDEPLOY_INLINE void write(Product const& p, Columns const& columns, long row, Vector left, Vector right) {
    long const place = row * p.out_stride + columns.first;
    if (Kind == Finish::kGeluOperand) {
        store_operands(static_cast<Operand*>(p.out) + place, left, right, columns.steps);
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

// Finish rows of values, two vectors each.
template <Finish Kind, int Count>
MLPDEPLOY_TILE_PART void finish(Product const& p, Columns const& columns, long row, Vector (&values)[Count]) {
    if (has_gelu(Kind)) gelu(values);
#pragma GCC unroll 16
    for (int i = 0; i < Count; i += 2) write<Kind>(p, columns, row + i / 2, values[i], values[i + 1]);
}

}  // namespace mlpdeploy::cpu::MLPDEPLOY_ISA

#ifdef MLPDEPLOY_TILES
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
