// The whole arithmetic of the axial shift, for the device and for the host:
// what one thread of the kernel does is shift_chunk(), and a test calls that
// same function in a plain loop without a GPU.
#pragma once

#include <cstdint>
#include <type_traits>

#include "axial_shift_chunk.h"
#include "axial_shift_division.h"
#include "axial_shift_host_device.h"
#include "axial_shift_params.h"

namespace mlpdeploy {

/// One direction: `stride` elements lie between neighbours, `size` of them are
/// in an image.
template <typename Index>
struct Axis {
    Index stride;
    Index size;
};

/// AxialShiftParams with everything that does not depend on the element worked
/// out; in elements, not bytes.
template <typename Index>
struct ShiftPlan {
    Index total;  // with the channels that fill a block up
    Index channels;
    Index channel_block;
    Index blocks;      // channel blocks in one image
    Index block_size;  // elements in one of them
    Index group_size;
    Index half;  // groups that move backwards
    Index dilation;
    Axis<Index> along_w;
    Axis<Index> along_h;
    Padding padding;
};

/// Tensors up to here, and moves up to here, are indexed with 32 bits: their
/// sums stay below 2^31.
constexpr int64_t kNARROW_LIMIT = int64_t{1} << 30;

/// What an index is divided by. Divide: Divisor or Reciprocal.
template <typename Divide>
struct Dividers {
    Divide block_size;
    Divide blocks;
    Divide channel_block;
    Divide width;
    Divide group_size;
};

/// Return the elements of one image of x, with the channels that fill a block
/// up.
inline int64_t image_elements(AxialShiftParams const& p) {
    return (p.c + p.channel_block - 1) / p.channel_block * p.channel_block * p.h * p.w;
}

/// Return the plan of a shift that refusal() accepts.
template <typename Index>
ShiftPlan<Index> plan_of(AxialShiftParams const& p) {
    int64_t const blocks = (p.c + p.channel_block - 1) / p.channel_block;
    int64_t const block_size = p.h * p.w * p.channel_block;
    ShiftPlan<Index> plan{};
    plan.total = static_cast<Index>(p.n * blocks * block_size);
    plan.channels = static_cast<Index>(p.c);
    plan.channel_block = static_cast<Index>(p.channel_block);
    plan.blocks = static_cast<Index>(blocks);
    plan.block_size = static_cast<Index>(block_size);
    plan.group_size = static_cast<Index>((p.c + p.shift_size - 1) / p.shift_size);
    plan.half = static_cast<Index>(p.shift_size / 2);
    plan.dilation = static_cast<Index>(p.dilation);
    plan.along_w = {static_cast<Index>(p.channel_block), static_cast<Index>(p.w)};
    plan.along_h = {static_cast<Index>(p.w * p.channel_block), static_cast<Index>(p.h)};
    plan.padding = p.padding;
    return plan;
}

/// Return what the indices of a plan are divided by.
template <typename Divide, typename Index>
MLPDEPLOY_HD Dividers<Divide> dividers_of(ShiftPlan<Index> const& plan) {
    return {Divide::of(plan.block_size), Divide::of(plan.blocks), Divide::of(plan.channel_block),
            Divide::of(plan.along_w.size), Divide::of(plan.group_size)};
}

/// What continued() and source_of() return for "a zero comes in here".
template <typename Index>
MLPDEPLOY_HD constexpr Index outside() {
    return -1;
}

/// Return the position inside of [0, size) that stands at `at`, one padding
/// away at most, or outside().
template <typename Index>
MLPDEPLOY_HD Index continued(Index at, Index size, Padding padding) {
    if (at >= 0 && at < size) {
        return at;
    }
    switch (padding) {
        case Padding::kCIRCULAR:
            return at < 0 ? at + size : at - size;
        case Padding::kREFLECT:
            return at < 0 ? -at : 2 * (size - 1) - at;
        case Padding::kREPLICATE:
            return at < 0 ? 0 : size - 1;
        case Padding::kZERO:
        default:  // refusal() lets no other value through
            return outside<Index>();
    }
}

template <typename Index>
MLPDEPLOY_HD Index channel_of(ShiftPlan<Index> const& plan, Index index) {
    Index const block = index / plan.block_size % plan.blocks;
    return plan.channel_block == 1 ? block : block * plan.channel_block + index % plan.channel_block;
}

/// Return by how many pixels group `group` moves.
template <typename Index>
MLPDEPLOY_HD Index move_of(ShiftPlan<Index> const& plan, Index group) {
    return (group - plan.half) * plan.dilation;
}

/// Return the index in x of the element that lands at `index`, or outside().
/// The definition: all else is speed.
template <typename Index>
MLPDEPLOY_HD Index source_of(ShiftPlan<Index> const& plan, Axis<Index> axis, Index index) {
    Index const channel = channel_of(plan, index);
    if (channel >= plan.channels) {
        return outside<Index>();
    }
    Index const at = index / axis.stride % axis.size;
    Index const from = continued(at - move_of(plan, channel / plan.group_size), axis.size, plan.padding);
    return from == outside<Index>() ? from : index + (from - at) * axis.stride;
}

/// Where an element lies.
template <typename Index>
struct Place {
    Index within;  // its channel block: the elements before it
    Index channel;
    Index row;
    Index column;
};

/// Return where element `index` lies: all that both axes need, with each
/// division made once.
template <bool kIS_PLANAR, typename Divide, typename Index>
MLPDEPLOY_HD Place<Index> place_of(ShiftPlan<Index> const& plan, Dividers<Divide> const& divide, Index index) {
    Index const block = divide.block_size.quotient(index);
    Index const within = index - block * plan.block_size;
    Index const of_image = block - divide.blocks.quotient(block) * plan.blocks;
    Index const pixel = kIS_PLANAR ? within : divide.channel_block.quotient(within);
    Index const row = divide.width.quotient(pixel);
    return {within, kIS_PLANAR ? of_image : (of_image - pixel) * plan.channel_block + within, row,
            pixel - row * plan.along_w.size};
}

/// Return 16 bytes of an output element by element: right everywhere, and the
/// slow way, so that it is kept small.
template <typename T, typename Index>
MLPDEPLOY_HD Chunk chunk_by_elements(ShiftPlan<Index> const& plan, Axis<Index> axis, T const* x, Index first) {
    Chunk chunk{};
    MLPDEPLOY_NO_UNROLL
    for (int i = 0; i < kCHUNK_BYTES / static_cast<int>(sizeof(T)); ++i) {
        Index const source = source_of(plan, axis, first + i);
        uint32_t const value = source == outside<Index>() ? 0u : static_cast<uint32_t>(x[source]);
        int const byte = i * static_cast<int>(sizeof(T));
        MLPDEPLOY_UNROLL
        for (int word = 0; word < kCHUNK_WORDS; ++word) {
            chunk.word[word] |= byte / 4 == word ? value << (byte % 4 * 8) : 0u;
        }
    }
    return chunk;
}

/// Return 16 bytes of an output whose channels lie side by side, all in one
/// pixel, which stands at `at` on the axis: one aligned load per group.
template <typename T, typename Divide, typename Index>
MLPDEPLOY_HD Chunk chunk_of_pixel(ShiftPlan<Index> const& plan, Dividers<Divide> const& divide, Axis<Index> axis,
                                  T const* x, Index first, Index channel, Index at) {
    constexpr Index kCOUNT = kCHUNK_BYTES / sizeof(T);
    Index const end = channel + kCOUNT < plan.channels ? channel + kCOUNT : plan.channels;
    Chunk chunk{};
    for (Index begin = channel; begin < end;) {
        Index const group = divide.group_size.quotient(begin);
        Index const from = continued(at - move_of(plan, group), axis.size, plan.padding);
        Chunk piece{};
        if (from != outside<Index>()) {
            piece = load_chunk(x + (first + (from - at) * axis.stride));
        }
        replace_from(chunk, piece, static_cast<int>((begin - channel) * static_cast<Index>(sizeof(T))));
        begin = (group + 1) * plan.group_size;
    }
    if (end < channel + kCOUNT) {
        int const used = end > channel ? static_cast<int>((end - channel) * static_cast<Index>(sizeof(T))) : 0;
        replace_from(chunk, Chunk{}, used);
    }
    return chunk;
}

/// Put the 16 bytes at `start`, which need not be aligned, into `chunk`. Return
/// false at the very ends of the tensor, where x cannot be read in chunks.
template <typename T, typename Index>
MLPDEPLOY_HD bool load_unaligned(ShiftPlan<Index> const& plan, T const* x, Index start, Chunk& chunk) {
    constexpr Index kCOUNT = kCHUNK_BYTES / sizeof(T);
    Index const place = start & (kCOUNT - 1);  // two's complement: right for negative numbers too
    Index const aligned = start - place;
    if (aligned < 0 || aligned + (place ? 2 * kCOUNT : kCOUNT) > plan.total) {
        return false;
    }
    chunk = load_chunk(x + aligned);
    if (place) {
        chunk = joined(chunk, load_chunk(x + (aligned + kCOUNT)), static_cast<uint32_t>(place * sizeof(T)));
    }
    return true;
}

/// Return a bit for each of `kCOUNT` elements from `begin` to before `end`,
/// where there are such.
template <int kCOUNT, typename Index>
MLPDEPLOY_HD uint32_t bits_between(Index begin, Index end) {
    Index const low = begin < 0 ? 0 : begin > kCOUNT ? kCOUNT : begin;
    Index const high = end < 0 ? 0 : end > kCOUNT ? kCOUNT : end;
    return (1u << high) - (1u << low);
}

/// Return a bit for each element of a planar chunk that comes from outside of
/// the image, when all move by `move`, which is less than the image. Row by
/// row, of which a chunk of a narrow image has several.
template <bool kIS_ROW, int kCOUNT, typename Index>
MLPDEPLOY_HD uint32_t bits_outside(ShiftPlan<Index> const& plan, Place<Index> const& place, Index move) {
    Index const width = plan.along_w.size;
    Index const height = plan.along_h.size;
    uint32_t bits = 0;
    Index row = place.row;
    MLPDEPLOY_NO_UNROLL
    for (Index begin = -place.column; begin < kCOUNT; begin += width) {
        if (kIS_ROW) {
            bits |= move < 0 ? bits_between<kCOUNT>(begin + width + move, begin + width)
                             : bits_between<kCOUNT>(begin, begin + move);
        } else if (row < move || row >= height + move) {
            bits |= bits_between<kCOUNT>(begin, begin + width);
        }
        row = row + 1 == height ? 0 : row + 1;
    }
    return bits;
}

/// Put the elements of a planar chunk in place that have a bit in `bits`: what
/// a padding other than zeros takes from elsewhere in the image.
template <bool kIS_ROW, typename T, typename Divide, typename Index>
MLPDEPLOY_HD void fetch_elements(ShiftPlan<Index> const& plan, Dividers<Divide> const& divide, T const* x, Index first,
                                 Place<Index> const& place, Index move, uint32_t bits, Chunk& chunk) {
    Axis<Index> const axis = kIS_ROW ? Axis<Index>{1, plan.along_w.size} : plan.along_h;
    MLPDEPLOY_NO_UNROLL
    for (; bits != 0; bits &= bits - 1) {
        int const i = lowest_bit(bits);
        Index const column = place.column + i;
        Index const rows = divide.width.quotient(column);
        Index const row = place.row + rows;  // in this plane or in the next one
        Index const in_plane = row >= plan.along_h.size ? row - plan.along_h.size : row;
        Index const at = kIS_ROW ? column - rows * plan.along_w.size : in_plane;
        Index const from = continued(at - move, axis.size, plan.padding);
        set_element(chunk, i, x[first + i + (from - at) * axis.stride]);
    }
}

/// Put 16 bytes of a planar output into `chunk`, whose elements all move by
/// `move`: they lie side by side in x too, at any alignment, but for those that
/// come from outside of the image. Return false where x cannot be read in
/// chunks.
template <bool kIS_ROW, typename T, typename Divide, typename Index>
MLPDEPLOY_HD bool chunk_of_plane(ShiftPlan<Index> const& plan, Dividers<Divide> const& divide, T const* x, Index first,
                                 Place<Index> const& place, Index move, Chunk& chunk) {
    constexpr Index kCOUNT = kCHUNK_BYTES / sizeof(T);
    Axis<Index> const axis = kIS_ROW ? Axis<Index>{1, plan.along_w.size} : plan.along_h;
    if (move >= axis.size || move <= -axis.size) {
        return false;  // nothing of the image itself arrives
    }
    if (!load_unaligned(plan, x, first - move * axis.stride, chunk)) {
        return false;
    }
    Index const at = kIS_ROW ? place.column : place.row;
    // The usual case: the whole chunk lies in one row and stays inside of the
    // image.
    Index const last = kIS_ROW ? at + (kCOUNT - 1) : at;
    if (place.column + kCOUNT <= plan.along_w.size && at >= move && last < axis.size + move) {
        return true;
    }
    uint32_t const bits = bits_outside<kIS_ROW, kCOUNT>(plan, place, move);
    if (plan.padding == Padding::kZERO) {
        clear_elements<T>(chunk, bits);
    } else {
        fetch_elements<kIS_ROW>(plan, divide, x, first, place, move, bits, chunk);
    }
    return true;
}

/// Put 16 bytes of both outputs into `along_w` and `along_h`.
template <typename T, typename Divide, typename Index>
MLPDEPLOY_HD void chunks_of(ShiftPlan<Index> const& plan, Dividers<Divide> const& divide, T const* x, Index first,
                            Chunk& along_w, Chunk& along_h) {
    constexpr Index kCOUNT = kCHUNK_BYTES / sizeof(T);
    if (plan.channel_block % kCOUNT == 0) {
        auto const place = place_of<false>(plan, divide, first);
        along_w = chunk_of_pixel(plan, divide, plan.along_w, x, first, place.channel, place.column);
        along_h = chunk_of_pixel(plan, divide, plan.along_h, x, first, place.channel, place.row);
        return;
    }
    bool has_w = false;
    bool has_h = false;
    // A plane holds a chunk at least, so there are two planes in a chunk at most:
    // first and last speak for all.
    if (plan.channel_block == 1 && plan.block_size >= kCOUNT) {
        auto const place = place_of<true>(plan, divide, first);
        Index const group = divide.group_size.quotient(place.channel);
        Index const next = place.channel + 1 == plan.blocks ? 0 : place.channel + 1;
        Index const last = place.within + kCOUNT > plan.block_size ? next : place.channel;
        Index const in_group = last - group * plan.group_size;
        if (in_group >= 0 && in_group < plan.group_size) {
            Index const move = move_of(plan, group);
            has_w = chunk_of_plane<true>(plan, divide, x, first, place, move, along_w);
            has_h = chunk_of_plane<false>(plan, divide, x, first, place, move, along_h);
        }
    }
    if (!has_w) {
        along_w = chunk_by_elements(plan, plan.along_w, x, first);
    }
    if (!has_h) {
        along_h = chunk_by_elements(plan, plan.along_h, x, first);
    }
}

/// Write `kCOUNT` elements of both outputs from `first` on, fewer at the end of
/// the tensor. kCOUNT is 1, or the elements of 16 bytes; then x, y_w and y_h
/// are aligned to 16 bytes and `first` is a multiple of kCOUNT.
template <typename T, int kCOUNT, typename Divide, typename Index>
MLPDEPLOY_HD void shift_chunk(ShiftPlan<Index> const& plan, [[maybe_unused]] Dividers<Divide> const& divide, T const* x,
                              T* y_w, T* y_h, Index first) {
    if constexpr (kCOUNT > 1) {
        if (plan.total - first >= kCOUNT) {
            Chunk along_w;
            Chunk along_h;
            chunks_of(plan, divide, x, first, along_w, along_h);
            store_chunk(y_w + first, along_w);
            store_chunk(y_h + first, along_h);
            return;
        }
    }
    MLPDEPLOY_NO_UNROLL
    for (Index i = first; i < plan.total && i < first + kCOUNT; ++i) {
        Index const from_w = source_of(plan, plan.along_w, i);
        Index const from_h = source_of(plan, plan.along_h, i);
        y_w[i] = from_w == outside<Index>() ? T{0} : x[from_w];
        y_h[i] = from_h == outside<Index>() ? T{0} : x[from_h];
    }
}

/// One compiled form of the kernel.
template <typename T, int kCOUNT, typename IndexType>
struct Variant {
    using Element = T;
    using Index = IndexType;
    using Divide = std::conditional_t<sizeof(Index) == 4, Reciprocal, Divisor<Index>>;
    static constexpr int kElements = kCOUNT;
};

/// Return whether all three pointers allow 16-byte accesses.
template <typename T>
bool allow_chunks(T const* x, T const* y_w, T const* y_h) {
    auto const bits =
        reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y_w) | reinterpret_cast<uintptr_t>(y_h);
    return bits % kCHUNK_BYTES == 0;
}

/// Cut a shift into launches whose elements 32 bits can count, along n: images
/// do not know of each other. Call `launch(Variant, params, x, y_w, y_h)` for
/// each, until one returns false. Only an image that is too large by itself
/// takes 64-bit indices: they are several times slower on a GPU.
///
/// params: what refusal() accepts. narrow_limit: kNARROW_LIMIT, or less in a
/// test.
template <typename T, typename Launch>
void for_each_launch(AxialShiftParams params, T const* x, T* y_w, T* y_h, int64_t narrow_limit, Launch launch) {
    int64_t const image = image_elements(params);
    if (image > narrow_limit || reach_of(params) > narrow_limit) {
        launch(Variant<T, 1, int64_t>{}, params, x, y_w, y_h);
        return;
    }
    int64_t images = narrow_limit / image;
    if (images > kCHUNK_BYTES) {
        images -= images % kCHUNK_BYTES;  // so that each launch begins as well aligned as the first
    }
    for (int64_t left = params.n; left > 0; left -= images) {
        params.n = left < images ? left : images;
        bool const going = allow_chunks(x, y_w, y_h)
                               ? launch(Variant<T, kCHUNK_BYTES / sizeof(T), int32_t>{}, params, x, y_w, y_h)
                               : launch(Variant<T, 1, int32_t>{}, params, x, y_w, y_h);
        if (!going) {
            return;
        }
        x += params.n * image;
        y_w += params.n * image;
        y_h += params.n * image;
    }
}

}  // namespace mlpdeploy
