#include <algorithm>
#include <cstring>

#include "data/image/decode.h"

#ifdef LOWBIT_HAVE_TURBOJPEG
#include <turbojpeg.h>

namespace lowbit {

bool have_turbo() { return true; }

namespace {

/// One decompressor for each thread: creating one costs as much as decoding a thumbnail. A file that fails
/// leaves the decompressor in a state that can spoil the next one (seen with 2.1.5), so it is replaced then.
class Handle {
 public:
  ~Handle() { reset(); }
  tjhandle get() { return h_ ? h_ : h_ = tjInitDecompress(); }
  void reset() {
    if (h_) tjDestroy(h_);
    h_ = nullptr;
  }

 private:
  tjhandle h_ = nullptr;
};

/// a·b/255, rounded, for bytes.
inline uint32_t mul_div_255(uint32_t a, uint32_t b) {
  const uint32_t t = a * b + 128;
  return ((t >> 8) + t) >> 8;
}

/// Pillow's cmyk2rgb applied to the inverted values that JPEG files hold.
void inverted_cmyk_to_rgb(const uint8_t* cmyk, size_t pixels, uint8_t* rgb) {
  for (size_t i = 0; i < pixels; ++i, cmyk += 4, rgb += 3) {
    const uint32_t light = cmyk[3];
    for (int c = 0; c < 3; ++c) rgb[c] = uint8_t(light - mul_div_255(255u - cmyk[c], light));
  }
}

/// True when no end-of-image marker follows the last start of a scan: data ran out, whatever was wrong before
/// that.
bool lacks_end_marker(std::span<const uint8_t> bytes) {
  static constexpr uint8_t kScan[2] = {0xFF, 0xDA}, kEnd[2] = {0xFF, 0xD9};
  const auto scan = std::find_end(bytes.begin(), bytes.end(), kScan, kScan + 2);
  return std::search(scan, bytes.end(), kEnd, kEnd + 2) == bytes.end();
}

/// "" when the pixels may be used. The library reports the first warning only.
std::string judge_warning(tjhandle h, std::span<const uint8_t> bytes) {
  const std::string text = tjGetErrorStr2(h);
  if (tjGetErrorCode(h) != TJERR_WARNING) return text;
  if (text.find("Premature end of JPEG file") != std::string::npos) return "truncated file";
  if (text.find("Progressive JPEG image has more than") != std::string::npos) return text;
  return lacks_end_marker(bytes) ? "truncated file" : "";
}

std::string decode(tjhandle h, std::span<const uint8_t> bytes, Image& out) {
  thread_local std::vector<uint8_t> cmyk;
  int width = 0, height = 0, sampling = 0, colour = 0;
  const auto size = static_cast<unsigned long>(bytes.size());
  if (tjDecompressHeader3(h, bytes.data(), size, &width, &height, &sampling, &colour) != 0) {
    const std::string why = judge_warning(h, bytes);
    // Sampling factors without a name in TurboJPEG (4x2, mixed) are decoded all the same; the size is set by
    // then.
    if (!why.empty() && why.find("subsampling type") == std::string::npos) return why;
  }
  if (const std::string why = detail::check_image_size(height, width); !why.empty()) return why;
  out.reshape(height, width);
  const bool four = colour == TJCS_CMYK || colour == TJCS_YCCK;
  if (four) cmyk.resize(size_t(width) * size_t(height) * 4);
  const int flags = TJFLAG_ACCURATEDCT | TJFLAG_LIMITSCANS;
  const int rc = tjDecompress2(h, bytes.data(), size, four ? cmyk.data() : out.data(), width, 0, height,
                               four ? TJPF_CMYK : TJPF_RGB, flags);
  if (rc != 0) {
    if (const std::string why = judge_warning(h, bytes); !why.empty()) return why;
  }
  if (four) inverted_cmyk_to_rgb(cmyk.data(), size_t(width) * size_t(height), out.data());
  return "";
}

}  // namespace

std::string detail::decode_turbo(std::span<const uint8_t> bytes, Image& out) {
  thread_local Handle handle;
  std::string why = decode(handle.get(), bytes, out);
  if (!why.empty()) handle.reset();
  return why;
}

}  // namespace lowbit

#else

namespace lowbit {

bool have_turbo() { return false; }
std::string detail::decode_turbo(std::span<const uint8_t>, Image&) {
  return "this build has no libjpeg-turbo (configure with -DWITH_TURBOJPEG=ON)";
}

}  // namespace lowbit

#endif
