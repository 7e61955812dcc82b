#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tensor/core/tensor.h"
#include "tensor/hd/philox.h"

namespace lowbit {

/// Samples by number. Everything about their form is declared before anything runs.
class Dataset {
 public:
  struct Field {
    std::string name;  ///< "image", "label"
    Shape shape;       ///< of one sample; the loader prepends the batch
    DType dtype = DType::f32;
  };
  virtual ~Dataset() = default;
  virtual int64_t size() const = 0;
  virtual std::vector<Field> fields() const = 0;
  /// Writes sample `index` into `out`, one packed view for each field. Called by several threads at once.
  /// Pure: the same index and key give the same bytes. Errors name the file.
  virtual void read(int64_t index, const RngKey& key, std::span<const View> out) const = 0;
};

}  // namespace lowbit
