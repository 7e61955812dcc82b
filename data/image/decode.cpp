#include "data/image/decode.h"

#include <cstring>

#include "tensor/core/error.h"
#include "tensor/io/byte_source.h"

namespace lowbit {

std::string_view sniff_format(std::span<const uint8_t> b) {
  const auto starts = [&](std::string_view magic) {
    return b.size() >= magic.size() && std::memcmp(b.data(), magic.data(), magic.size()) == 0;
  };
  if (starts("\xFF\xD8")) return "jpeg";
  if (starts("\x89PNG\r\n\x1A\n")) return "png";
  if (starts("GIF87a") || starts("GIF89a")) return "gif";
  if (starts("BM")) return "bmp";
  return "";
}

const char* decoder_name(Decoder d) {
  const bool turbo = d == Decoder::turbo || (d == Decoder::auto_ && have_turbo());
  return turbo ? "libjpeg-turbo" : "stb_image";
}

std::string detail::check_image_size(int64_t height, int64_t width) {
  if (height < 1 || width < 1) return str_cat("empty image (", width, " x ", height, ")");
  if (height <= kMaxImageSide && width <= kMaxImageSide && height * width <= kMaxImagePixels) return "";
  return str_cat("too large (", width, " x ", height, ")");
}

ImageView decode_part(std::span<const uint8_t> bytes, std::string_view name, const ChoosePart& choose,
                      Image& scratch, Decoder d) {
  const std::string_view format = sniff_format(bytes);
  LOWBIT_CHECK(!bytes.empty(), io, "image", "cannot decode ", name, ": empty file");
  LOWBIT_CHECK(!format.empty(), io, "image", "cannot decode ", name,
               ": not an image (jpeg, png, gif and bmp are read)");
  const bool turbo = format == "jpeg" && (d == Decoder::turbo || (d == Decoder::auto_ && have_turbo()));
  ImageView part;
  const std::string reason =
      turbo ? detail::decode_turbo(bytes, choose, scratch, part) : detail::decode_stb(bytes, scratch);
  LOWBIT_CHECK(reason.empty(), io, format, "cannot decode ", name, ": ", reason);
  if (turbo) return part;
  if (!choose) return scratch.view();
  const Box b = choose(scratch.height(), scratch.width());
  return scratch.view().crop(b.top, b.left, b.height, b.width);
}

void decode_image(std::span<const uint8_t> bytes, std::string_view name, Image& out, Decoder d) {
  decode_part(bytes, name, {}, out, d);
}

void read_file(const std::string& path, std::vector<uint8_t>& out) {
  const ByteSource file = ByteSource::open(path);
  LOWBIT_CHECK(file.size() <= uint64_t(kMaxImageFile), io, "image", "cannot read ", path, ": larger than ",
               kMaxImageFile >> 20, " MiB");
  out.resize(file.size());
  file.read(0, out.data(), file.size());
}

}  // namespace lowbit
