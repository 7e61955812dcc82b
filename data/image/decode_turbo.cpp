#include "data/image/decode.h"

#ifdef LOWBIT_HAVE_TURBOJPEG
#include <csetjmp>
// jpeglib.h needs size_t and FILE declared before it.
#include <cstdio>

#include <jpeglib.h>

#include <jerror.h>

#include <algorithm>
#include <optional>

namespace lowbit {

bool have_turbo() { return true; }

namespace {

/// A progressive file may repeat scans without end; each costs a pass over the image (TurboJPEG's limit).
constexpr int kMaxScans = 500;
/// Smooth upsampling of colour looks one colour sample to each side, and is replaced by a plain one in
/// narrow strips.
constexpr int kMargin = 4, kMinColumns = 64;

/// libjpeg's state with its errors made values: a fatal one jumps to the guard that is active.
struct Decompressor {
  jpeg_decompress_struct info{};
  jpeg_error_mgr errors{};
  jpeg_progress_mgr progress{};
  std::jmp_buf back{};
  char text[JMSG_LENGTH_MAX] = "";
  bool ran_out = false;

  Decompressor() {
    info.err = jpeg_std_error(&errors);
    info.client_data = this;
    errors.error_exit = [](j_common_ptr c) {
      c->err->format_message(c, self(c).text);
      std::longjmp(self(c).back, 1);
    };
    // Warnings: only missing data matters, damage that leaves a complete image is accepted.
    errors.emit_message = [](j_common_ptr c, int level) {
      if (level < 0 && c->err->msg_code == JWRN_JPEG_EOF) self(c).ran_out = true;
    };
    progress.progress_monitor = [](j_common_ptr c) {
      if (reinterpret_cast<j_decompress_ptr>(c)->input_scan_number <= kMaxScans) return;
      std::snprintf(self(c).text, sizeof self(c).text, "Progressive JPEG image has more than %d scans",
                    kMaxScans);
      std::longjmp(self(c).back, 1);
    };
    jpeg_create_decompress(&info);
    info.progress = &progress;
  }
  ~Decompressor() { jpeg_destroy_decompress(&info); }
  Decompressor(const Decompressor&) = delete;

  /// Runs f, which must hold nothing that needs a destructor; false when libjpeg gave up (see `text`).
  template <class F>
  bool guarded(F&& f) {
    if (setjmp(back) != 0) return false;
    f();
    return true;
  }

 private:
  static Decompressor& self(j_common_ptr c) { return *static_cast<Decompressor*>(c->client_data); }
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
  if (bytes.size() >= 2 && std::equal(kEnd, kEnd + 2, bytes.end() - 2)) return false;
  const auto scan = std::find_end(bytes.begin(), bytes.end(), kScan, kScan + 2);
  return std::search(scan, bytes.end(), kEnd, kEnd + 2) == bytes.end();
}

/// Starts decompression of the rows and columns of `want` and a margin; where they begin is returned.
Box start(jpeg_decompress_struct& info, const Box& want) {
  info.out_color_space = info.num_components == 4 ? JCS_CMYK : JCS_RGB;
  info.dct_method = JDCT_ISLOW;
  jpeg_start_decompress(&info);
  const int height = int(info.output_height), width = int(info.output_width);
  Box all{std::max(want.top - kMargin, 0), 0, 0, width};
  all.height = std::min(want.top + want.height + kMargin, height) - all.top;
  const int columns = std::max(want.width + 2 * kMargin, kMinColumns);
  if (columns < width) {
    JDIMENSION left = JDIMENSION(std::clamp(want.left - kMargin, 0, width - columns)),
               across = JDIMENSION(columns);
    jpeg_crop_scanline(&info, &left, &across);
    all.left = int(left);
    all.width = int(across);
  }
  if (all.top > 0) jpeg_skip_scanlines(&info, JDIMENSION(all.top));
  return all;
}

std::string decode(Decompressor& d, std::span<const uint8_t> bytes, const ChoosePart& choose, Image& out,
                   ImageView& part) {
  thread_local std::vector<uint8_t> cmyk;
  d.ran_out = false;
  jpeg_decompress_struct& info = d.info;
  if (!d.guarded([&] {
        jpeg_mem_src(&info, bytes.data(), static_cast<unsigned long>(bytes.size()));
        jpeg_read_header(&info, TRUE);
      }))
    return d.text;
  const int height = int(info.image_height), width = int(info.image_width);
  if (std::string why = detail::check_image_size(height, width); !why.empty()) return why;
  const Box want = choose ? choose(height, width) : Box{0, 0, height, width};
  Box all;
  if (!d.guarded([&] { all = start(info, want); })) return d.ran_out ? "truncated file" : d.text;
  out.reshape(all.height, all.width);
  const bool four = info.num_components == 4;
  if (four) cmyk.resize(size_t(all.width) * 4);
  if (!d.guarded([&] {
        for (int y = 0; y < all.height; ++y) {
          JSAMPROW row = four ? cmyk.data() : out.row(y);
          jpeg_read_scanlines(&info, &row, 1);
          if (four) inverted_cmyk_to_rgb(row, size_t(all.width), out.row(y));
        }
        if (info.output_scanline == info.output_height)
          jpeg_finish_decompress(&info);
        else
          jpeg_abort_decompress(&info);
      }))
    return d.ran_out ? "truncated file" : d.text;
  // A file is judged as a whole, whichever part was wanted.
  if (d.ran_out || lacks_end_marker(bytes)) return "truncated file";
  part = out.view().crop(want.top - all.top, want.left - all.left, want.height, want.width);
  return "";
}

}  // namespace

std::string detail::decode_turbo(std::span<const uint8_t> bytes, const ChoosePart& choose, Image& out,
                                 ImageView& part) {
  // One for each thread: creating one costs as much as decoding a thumbnail. After a failure a fresh one.
  thread_local std::optional<Decompressor> d;
  if (!d) d.emplace();
  std::string why = decode(*d, bytes, choose, out, part);
  if (!why.empty()) d.reset();
  return why;
}

}  // namespace lowbit

#else

namespace lowbit {

bool have_turbo() { return false; }
std::string detail::decode_turbo(std::span<const uint8_t>, const ChoosePart&, Image&, ImageView&) {
  return "this build has no libjpeg-turbo (configure with -DWITH_TURBOJPEG=ON)";
}

}  // namespace lowbit

#endif
