#pragma once
// Soft labels of FKD (Shen et al. 2022): what is kept of a teacher's probabilities for a crop, and the full
// vector recovered from it. See docs/methods/fkd.md.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tensor/core/tensor.h"

namespace lowbit {

/// Kept of p                      recovered
///   full             all          p
///   hard             argmax       1 at the class
///   smoothing        argmax, p    p at the class, (1 − p)/(C − 1) elsewhere
///   marginal         top k        p at the k classes, (1 − Σp)/(C − k) elsewhere
///   marginal_renorm  top k        p/Σp at the k classes, 0 elsewhere
enum class SoftLabelType : uint8_t { full, hard, smoothing, marginal, marginal_renorm };

/// The names of FKD's loader ("marginal_smoothing_k5"), with k for the marginal ones.
std::string soft_label_name(SoftLabelType type, int64_t k);
/// Errors  usage: unknown name
std::pair<SoftLabelType, int64_t> soft_label_named(const std::string& name);

/// Some crops of one image, each with `ids` (none for full) and `probabilities` (none for hard) of its own.
struct CropLabels {
  struct Crop {
    float top = 0, left = 0, height = 0, width = 0;  ///< shares of the image's sides
    bool flip = false;
  };
  SoftLabelType type = SoftLabelType::hard;
  int64_t ids_each = 0, probabilities_each = 0;
  std::vector<Crop> crops;
  std::vector<int32_t> ids;          ///< [crops, ids_each]
  std::vector<float> probabilities;  ///< [crops, probabilities_each]
  int64_t size() const { return int64_t(crops.size()); }
};

/// The full vector of crop i. Errors  io, named `where`: a class outside 0 … classes − 1
void recover_soft_label(const CropLabels& l, int64_t i, int64_t classes, const std::string& where, float* p);

/// Keeps of `p` what `type` keeps and appends it to the labels (not the crop). Ties go to the lower class.
void keep_soft_label(std::span<const float> p, CropLabels& l);

/// One file of FKD's generator: torch.save([coords, flips, labels]) in the zip or the legacy form, arrays,
/// tensors or lists, any float type. Errors  io: damaged, foreign, hostile or inconsistent
CropLabels read_label_file(const std::string& path);

}  // namespace lowbit
