#pragma once
// Image files to RGB pixels. The content decides the format, never the file name.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/image/image.h"

namespace lowbit {

/// `auto_`: libjpeg-turbo for JPEG where this build has it, stb_image for JPEG otherwise and for every other
/// format.
enum class Decoder : uint8_t { auto_, turbo, stb };

bool have_turbo();
/// "libjpeg-turbo" or "stb_image": what decodes JPEG. Belongs into every log, since the pixels differ
/// slightly.
const char* decoder_name(Decoder d = Decoder::auto_);

/// "jpeg", "png", "gif", "bmp" by the first bytes; "" for anything else.
std::string_view sniff_format(std::span<const uint8_t> bytes);

/// Decodes JPEG, PNG, GIF (first frame) or BMP to RGB, as Pillow's open().convert("RGB") does: grey and
/// palette images are expanded, alpha is dropped without blending, four-component JPEG is inverted CMYK, EXIF
/// orientation is ignored. With libjpeg-turbo (accurate integer DCT, smooth upsampling) JPEG pixels equal
/// Pillow's bit for bit; with stb_image they differ by a few levels. A truncated file is an error; damage
/// that leaves a complete image is accepted, as Pillow does. `name` is used in messages only. Errors  io:
/// "jpeg: cannot decode <name>: <reason>"
void decode_image(std::span<const uint8_t> bytes, std::string_view name, Image& out,
                  Decoder d = Decoder::auto_);

/// Says which part of an image is wanted, once its size is known. It must lie inside the image.
using ChoosePart = std::function<Box(int height, int width)>;

/// The same pixels of one part only, as a window on `scratch`. libjpeg-turbo decodes little more than the
/// part (rows before it are parsed but not transformed); the other decoders decode everything. Damage outside
/// of the part may go unnoticed, a truncated file does not. Errors  as decode_image
ImageView decode_part(std::span<const uint8_t> bytes, std::string_view name, const ChoosePart& choose,
                      Image& scratch, Decoder d = Decoder::auto_);

/// Larger files are refused unread.
inline constexpr int64_t kMaxImageFile = int64_t(1) << 28;

/// Whole file into `out`, which keeps its capacity. Errors  io, naming the path
void read_file(const std::string& path, std::vector<uint8_t>& out);

namespace detail {
/// Both decoders fill `out` or return the reason why they cannot ("" is success). An empty `choose` means
/// everything.
std::string decode_stb(std::span<const uint8_t> bytes, Image& out);
std::string decode_turbo(std::span<const uint8_t> bytes, const ChoosePart& choose, Image& out,
                         ImageView& part);
/// "" or why an image of this size is refused.
std::string check_image_size(int64_t height, int64_t width);
}  // namespace detail

}  // namespace lowbit
