#include "tensor/core/plugin.h"

#include <dlfcn.h>

#include <filesystem>

#include "tensor/core/error.h"

namespace lowbit {

void* open_plugin(const char* file, std::string& why) {
  std::error_code none;
  const auto path = std::filesystem::read_symlink("/proc/self/exe", none).replace_filename(file);
  if (!std::filesystem::exists(path, none)) {
    why = str_cat("no ", file, " beside the program");
    return nullptr;
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) why = dlerror();
  return library;
}

}  // namespace lowbit
