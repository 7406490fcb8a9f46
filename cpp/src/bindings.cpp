#include "bindings.h"

#include <algorithm>
#include <charconv>
#include <string>
#include <string_view>

#include "text.h"

namespace mlpdeploy {

namespace {

// Sizes as Python prints a tuple.
std::string tuple(const std::vector<std::string>& sizes) {
  return "(" + join(sizes, ", ") + (sizes.size() == 1 ? ",)" : ")");
}

std::vector<std::string> axis_texts(const TensorSpec& spec) {
  std::vector<std::string> sizes;
  for (const Axis& axis : spec.shape) sizes.push_back(axis.fixed() ? std::to_string(axis.size) : axis.symbol);
  return sizes;
}

std::string names_of(const std::vector<TensorSpec>& specs) {
  std::vector<std::string> names;
  for (const TensorSpec& spec : specs) names.push_back(spec.name);
  return join(names, ", ");
}

[[noreturn]] void refuse_input(const TensorView& view, const TensorSpec& spec, const std::string& fix = "",
                               const std::string& wanted = "") {
  const std::string came =
      "input " + repr(spec.name) + " is " + dtype_name(view.dtype) + " " + shape_text(view.shape, view.rank);
  const std::string shape =
      std::string(dtype_name(spec.dtype)) + " " + spec.layout + " (" + join(axis_texts(spec), ", ") + ")";
  throw Error(ErrorKind::usage, came, wanted.empty() ? shape : wanted, fix);
}

// 32 of "32*height"; 1 of "height".
std::int64_t factor_of(const std::string& symbol) noexcept {
  const auto star = symbol.rfind('*');
  std::int64_t factor = 1;
  if (star != std::string::npos) std::from_chars(symbol.data(), symbol.data() + star, factor);
  return std::max<std::int64_t>(factor, 1);
}

// Sizes of the symbolic axes that were seen: equal ones of all inputs must agree.
struct Symbols {
  struct Entry {
    const std::string* symbol;
    std::int64_t size;
  } entries[max_tensors * max_rank];
  std::size_t count = 0;

  // The size that the symbol had first.
  std::int64_t size_of(const std::string& symbol, std::int64_t size) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
      if (*entries[i].symbol == symbol) return entries[i].size;
    }
    entries[count++] = {&symbol, size};
    return size;
  }
};

void check_input(const TensorView& view, const TensorSpec& spec, Symbols& symbols) {
  if (view.dtype != spec.dtype) refuse_input(view, spec, std::string("convert it to ") + dtype_name(spec.dtype));
  if (view.rank != spec.shape.size()) {
    refuse_input(view, spec, view.rank + 1 == spec.shape.size() ? "add the batch axis" : "");
  }
  for (std::size_t axis = 0; axis < view.rank; ++axis) {
    const Axis& expected = spec.shape[axis];
    const std::int64_t size = view.shape[axis];
    if (expected.fixed()) {
      // A fixed batch is no limit: the session splits and pads.
      if (axis && size != expected.size) refuse_input(view, spec);
      continue;
    }
    const std::int64_t factor = factor_of(expected.symbol);
    if (size < 1 || size % factor) {
      const std::string least = std::to_string(factor);
      refuse_input(view, spec,
                   "axis " + std::to_string(axis) + " must be a multiple of " + least + ", at least " + least);
    }
    const std::int64_t known = symbols.size_of(expected.symbol, size);
    if (known != size) {
      refuse_input(view, spec, "",
                   std::to_string(known) + " on axis " + std::to_string(axis) + ", as another input has");
    }
  }
  if (view.shape[0] < 1) refuse_input(view, spec, "", "at least one row");
  if (!view.data) throw Error(ErrorKind::usage, "input " + repr(spec.name) + " has no data", "a pointer to its values");
}

// "height" of "32*height".
std::string_view name_of(const std::string& symbol) noexcept {
  return std::string_view(symbol).substr(symbol.rfind('*') + 1);  // npos + 1 is 0
}

// What sizes the inputs have, so that an output's are known.
struct Given {
  const std::vector<TensorSpec>& specs;
  const Feeds& feeds;

  // What an output's axis must have for these inputs, or 0 where they do not tell.
  std::int64_t size_of(const Axis& output) const noexcept {
    if (output.fixed()) return output.size;
    for (std::size_t i = 0; i < specs.size(); ++i) {
      for (std::size_t axis = 1; axis < specs[i].shape.size(); ++axis) {
        const Axis& known = specs[i].shape[axis];
        if (!known.fixed() && name_of(known.symbol) == name_of(output.symbol))
          return feeds.tensors[i].shape[axis] / factor_of(known.symbol) * factor_of(output.symbol);
      }
    }
    return 0;
  }
};

bool fits(const MutableTensorView& view, const TensorSpec& spec, const Given& given) noexcept {
  if (view.dtype != spec.dtype || view.rank != spec.shape.size() || !view.data || view.shape[0] != given.feeds.rows())
    return false;
  for (std::size_t axis = 1; axis < view.rank; ++axis) {
    const std::int64_t expected = given.size_of(spec.shape[axis]);
    if (view.shape[axis] < 1 || (expected && view.shape[axis] != expected)) return false;
  }
  return true;
}

}  // namespace

std::string shape_text(const std::int64_t* shape, std::size_t rank) {
  std::vector<std::string> sizes;
  for (std::size_t axis = 0; axis < rank; ++axis) sizes.push_back(std::to_string(shape[axis]));
  return tuple(sizes);
}

Binding binding(DType dtype, const std::int64_t* shape, std::size_t rank, void* data) noexcept {
  Binding result;
  result.dtype = dtype;
  result.rank = std::min(rank, max_rank);
  std::copy(shape, shape + result.rank, result.shape);
  result.data = data;
  return result;
}

Feeds checked_feeds(const std::vector<TensorSpec>& specs, const TensorView* inputs, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const auto known = [&](const TensorSpec& spec) { return spec.name == inputs[i].name; };
    if (std::none_of(specs.begin(), specs.end(), known)) {
      std::vector<std::string> names;
      for (const TensorSpec& spec : specs) names.push_back(spec.name);
      throw Error(ErrorKind::usage, "unknown input " + repr(inputs[i].name), "", closest(inputs[i].name, names));
    }
  }
  Feeds feeds;
  Symbols symbols;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const auto* found = std::find_if(inputs, inputs + count, [&](auto& view) { return view.name == specs[i].name; });
    if (found == inputs + count) {
      throw Error(ErrorKind::usage, "input " + repr(specs[i].name) + " is missing", "inputs " + names_of(specs));
    }
    check_input(*found, specs[i], symbols);
    feeds.tensors[i] = binding(found->dtype, found->shape, found->rank, const_cast<void*>(found->data));
    if (feeds.rows() != found->shape[0]) {
      refuse_input(*found, specs[i], "", std::to_string(feeds.rows()) + " on axis 0, as another input has");
    }
  }
  return feeds;
}

Results checked_results(const std::vector<TensorSpec>& specs, const MutableTensorView* outputs, std::size_t count,
                        const std::vector<TensorSpec>& input_specs, const Feeds& feeds) {
  const Given given{input_specs, feeds};
  Results results;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const TensorSpec& spec = specs[i];
    const auto* found = std::find_if(outputs, outputs + count, [&](auto& view) { return view.name == spec.name; });
    if (found == outputs + count) {
      throw Error(ErrorKind::usage, "outputs lacks " + repr(spec.name), "arrays for " + names_of(specs));
    }
    if (!fits(*found, spec, given)) {
      auto sizes = axis_texts(spec);
      sizes[0] = std::to_string(feeds.rows());
      for (std::size_t axis = 1; axis < sizes.size(); ++axis) {
        if (const std::int64_t size = given.size_of(spec.shape[axis])) sizes[axis] = std::to_string(size);
      }
      throw Error(ErrorKind::usage,
                  "output array " + repr(spec.name) + " is " + dtype_name(found->dtype) + " " +
                      shape_text(found->shape, found->rank),
                  std::string("a writable, contiguous ") + dtype_name(spec.dtype) + " (" + join(sizes, ", ") + ")");
    }
    results.tensors[i] = binding(found->dtype, found->shape, found->rank, found->data);
  }
  return results;
}

}  // namespace mlpdeploy
