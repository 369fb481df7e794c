// Tells in nanoseconds per tensor whether tensors are where they were, or hold what copies of them hold:
// resflow_kernels/nn/watch.py says what follows from that.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <vector>

#include "torch/box.h"

namespace resflow::torch_ops {
namespace {

// Where a tensor's elements are; two equal layouts of one tensor are the same elements. Those of all tensors lie one
// after another: a call finds them in few cache lines.
class Layout {
 public:
  explicit Layout(AtenTensorHandle tensor) {
    TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(tensor, &address_));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &dim_));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes_));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides_));
  }

  const void* address() const { return address_; }
  void keep(std::vector<int64_t>& kept) const {
    kept.push_back(dim_);
    kept.insert(kept.end(), sizes_, sizes_ + dim_);
    kept.insert(kept.end(), strides_, strides_ + dim_);
  }
  // Whether the next kept shape is this one; `kept` moves past it.
  bool has_shape(const int64_t*& kept) const {
    if (*kept++ != dim_) return false;
    for (int64_t i = 0; i < dim_; ++i) {
      if (kept[i] != sizes_[i] || kept[dim_ + i] != strides_[i]) return false;
    }
    kept += 2 * dim_;
    return true;
  }

 private:
  const void* address_ = nullptr;
  int64_t dim_ = 0;
  int64_t *sizes_ = nullptr, *strides_ = nullptr;
};

size_t bytes_of(AtenTensorHandle tensor) {
  int64_t elements = 0;
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(tensor, &elements));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  return elements * aoti_torch_dtype_element_size(dtype);
}

class Watched {
 public:
  // The tensor is compared with an address, or, with `bytes`, with what a copy of it at that address holds.
  void add(OwnedTensor tensor, const Layout& layout, size_t bytes) {
    layout.keep(shapes_);
    entries_.push_back({std::move(tensor), layout.address(), bytes});
  }

  bool unchanged() const {
    const int64_t* shape = shapes_.data();
    for (const Entry& entry : entries_) {
      const Layout now(entry.tensor.get());
      if (!now.has_shape(shape)) return false;
      if (entry.bytes == 0 ? now.address() != entry.address
                           : std::memcmp(now.address(), entry.address, entry.bytes) != 0) {
        return false;
      }
    }
    return true;
  }

 private:
  struct Entry {
    OwnedTensor tensor;
    const void* address;
    size_t bytes;
  };

  std::vector<Entry> entries_;
  std::vector<int64_t> shapes_;
};

// Python calls it by its address: through the dispatcher a call takes ten times as long.
bool unchanged(const Watched* watched) {
  try {
    return watched->unchanged();
  } catch (...) {  // a tensor that no longer has memory
    return false;
  }
}

// watch(Tensor[] tensors, Tensor[] copied, Tensor[] copies) -> int[]: the caller keeps the copies. They are as dense as
// the tensors, so that equal bytes are equal elements.
void watch(StableIValue* stack, uint64_t, uint64_t) {
  auto tensors = taken<std::vector<OwnedTensor>>(stack[0]);
  auto copied = taken<std::vector<OwnedTensor>>(stack[1]);
  const auto copies = taken<std::vector<OwnedTensor>>(stack[2]);
  auto watched = std::make_unique<Watched>();
  for (OwnedTensor& tensor : tensors) {
    const Layout layout(tensor.get());
    watched->add(std::move(tensor), layout, 0);
  }
  for (size_t i = 0; i < copies.size(); ++i) {
    const size_t bytes = bytes_of(copies[i].get());
    if (bytes > 0) watched->add(std::move(copied[i]), Layout(copies[i].get()), bytes);
  }
  const std::vector<int64_t> made{reinterpret_cast<int64_t>(watched.release()), reinterpret_cast<int64_t>(&unchanged)};
  stack[0] = torch::stable::detail::from(made);
}

void forget(int64_t watched) { delete reinterpret_cast<Watched*>(watched); }

}  // namespace
}  // namespace resflow::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(resflow, m) {
  m.def("watch(Tensor[] tensors, Tensor[] copied, Tensor[] copies) -> int[]");
  m.def("forget(int watched) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(resflow, CompositeExplicitAutograd, m) {
  m.impl("watch", resflow::torch_ops::watch);
  m.impl("forget", TORCH_BOX(&resflow::torch_ops::forget));
}
