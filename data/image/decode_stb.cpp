// The only file that sees stb_image. It has had memory-safety reports: it reads from memory only, the input's
// size and every allocation are bounded.

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "data/image/decode.h"

namespace {
/// Above what any image within the limits needs (GIF keeps four bytes a pixel three times, each on its own).
constexpr size_t kMaxAllocation = size_t(4) * size_t(lowbit::kMaxImagePixels) + (size_t(1) << 20);
/// Zeroed: up to version 2.27 the decoder's tables are not initialised, and a scan that names a missing table
/// read them.
void* bounded_malloc(size_t n) { return n > kMaxAllocation ? nullptr : std::calloc(1, n); }
void* bounded_realloc(void* p, size_t n) { return n > kMaxAllocation ? nullptr : std::realloc(p, n); }
}  // namespace

#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_ONLY_GIF
#define STBI_ONLY_BMP
#define STBI_NO_STDIO
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_FAILURE_USERMSG
#define STBI_MAX_DIMENSIONS 16384
#define STBI_MALLOC(n) bounded_malloc(n)
#define STBI_REALLOC(p, n) bounded_realloc(p, n)
#define STBI_FREE(p) std::free(p)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#include <stb_image.h>
#pragma GCC diagnostic pop

namespace lowbit {

namespace {

/// Input that remembers whether somebody read behind its end: except for JPEG and PNG, stb_image goes on with
/// zeros.
struct Source {
  std::span<const uint8_t> bytes;
  size_t position = 0;
  bool overrun = false;
};

int read_source(void* user, char* to, int n) {
  Source& s = *static_cast<Source*>(user);
  const size_t count = std::min(size_t(n), s.bytes.size() - s.position);
  if (count == 0) s.overrun = true;
  std::memcpy(to, s.bytes.data() + s.position, count);
  s.position += count;
  return int(count);
}

void skip_source(void* user, int n) {  // n may be negative: unread
  Source& s = *static_cast<Source*>(user);
  const int64_t to = int64_t(s.position) + n;
  s.overrun |= to > int64_t(s.bytes.size());
  s.position = size_t(std::clamp<int64_t>(to, 0, int64_t(s.bytes.size())));
}

int source_ended(void* user) {
  const Source& s = *static_cast<Source*>(user);
  return s.position == s.bytes.size();
}

/// True when something that stb_image may take for a Huffman table announces more than 256 codes:
/// version 2.27 writes behind its arrays then. The decoder's position after a scan cannot be known without
/// decoding, so every place that reads like the marker is looked at; in compressed data it cannot occur, in
/// metadata it hardly does.
bool has_overlong_huffman_table(std::span<const uint8_t> bytes) {
  const auto at = [&](size_t i) { return i < bytes.size() ? bytes[i] : uint8_t(0); };
  for (size_t i = 0; i + 1 < bytes.size(); ++i) {
    if (bytes[i] != 0xFF || bytes[i + 1] != 0xC4) continue;
    size_t p = i + 4;
    for (int left = at(i + 2) * 256 + at(i + 3) - 2; left > 0 && (at(p) >> 4) <= 1 && (at(p) & 15) <= 3;) {
      int codes = 0;
      for (size_t k = 1; k <= 16; ++k) codes += at(p + k);
      if (codes > 256) return true;
      p += size_t(17 + codes);
      left -= 17 + codes;
    }
  }
  return false;
}

constexpr stbi_io_callbacks kCallbacks{read_source, skip_source, source_ended};

}  // namespace

std::string detail::decode_stb(std::span<const uint8_t> bytes, Image& out) {
  const auto reason = [] {
    const char* text = stbi_failure_reason();
    return std::string(text ? text : "unknown error");
  };
  const bool jpeg = sniff_format(bytes) == "jpeg";
  if (jpeg && has_overlong_huffman_table(bytes)) return "bad Huffman table";
  int width = 0, height = 0, channels = 0;
  const int size = int(bytes.size());  // kMaxImageFile fits
  if (!stbi_info_from_memory(bytes.data(), size, &width, &height, &channels)) return reason();
  if (const std::string why = check_image_size(height, width); !why.empty()) return why;
  Source source{bytes};
  const std::unique_ptr<stbi_uc, decltype(&std::free)> pixels(
      jpeg  // from memory it is faster, and it notices the end by itself
          ? stbi_load_from_memory(bytes.data(), size, &width, &height, &channels, 3)
          : stbi_load_from_callbacks(&kCallbacks, &source, &width, &height, &channels, 3),
      &std::free);
  if (!pixels) return reason();
  if (source.overrun) return "truncated file";
  out.reshape(height, width);
  std::memcpy(out.data(), pixels.get(), out.bytes());
  return "";
}

}  // namespace lowbit
