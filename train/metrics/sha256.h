#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace lowbit {

/// SHA-256 (FIPS 180-4), for the digests in manifest.json.
class Sha256 {
 public:
  void update(std::string_view bytes);
  std::string hex();  ///< finishes; 64 lower-case digits

 private:
  void block(const uint8_t* p);
  std::array<uint32_t, 8> h_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> buffer_{};
  uint64_t length_ = 0;
};

std::string sha256_hex(std::string_view bytes);
/// Throws Error(io) when the file cannot be read.
std::string sha256_file(const std::string& path);

}  // namespace lowbit
