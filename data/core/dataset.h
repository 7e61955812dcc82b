#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "tensor/core/tensor.h"
#include "tensor/hd/philox.h"

namespace lowbit {

/// Bytes that the samples of a batch leave beside their fields, one behind the other: decoded pixels, which
/// have no fixed number. Every sample takes room once.
class Blob {
 public:
  /// `least` bytes are kept for each of `samples` that have not taken anything yet.
  void reset(uint8_t* data, int64_t bytes, int64_t samples, int64_t least) {
    data_ = data, bytes_ = bytes, waiting_ = samples, least_ = least, used_ = 0;
  }
  /// Room for n bytes and its place, or null when the others could then not have their least; n = least is
  /// always granted. Called by several threads at once.
  uint8_t* take(int64_t n, int64_t& offset) {
    const std::lock_guard lock(mutex_);
    if (used_ + padded(n) + (waiting_ - 1) * padded(least_) > bytes_) return nullptr;
    offset = used_;
    used_ += padded(n), --waiting_;
    return data_ + offset;
  }
  int64_t used() const { return used_; }
  static constexpr int64_t padded(int64_t n) {
    return (n + 15) / 16 * 16 + 16;
  }  ///< readers may load a word more

 private:
  std::mutex mutex_;
  uint8_t* data_ = nullptr;
  int64_t bytes_ = 0, waiting_ = 0, least_ = 0, used_ = 0;
};

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

  /// A data set whose samples leave bytes in the batch says how many each needs at least, and how many on
  /// average there shall be room for. Its batches are finished where they are used: finish() replaces fields,
  /// on their device, by what they and the bytes stand for.
  struct BlobSize {
    int64_t least = 0, average = 0;
  };
  virtual BlobSize blob_size() const { return {}; }
  virtual void read_with_bytes(int64_t index, const RngKey& key, std::span<const View> out,
                               Blob& /*blob*/) const {
    read(index, key, out);
  }
  virtual void finish(std::vector<Tensor>& /*fields*/, const Tensor& /*bytes*/) const {}
};

}  // namespace lowbit
