// The code blocks of docs/adding_an_op.md are the files they claim to be.

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>

namespace lowbit::test {
namespace {

std::string read(const std::string& path) {
  std::ifstream in(LOWBIT_SOURCE_DIR "/" + path);
  EXPECT_TRUE(in.good()) << path;
  std::ostringstream s;
  s << in.rdbuf();
  return s.str();
}

TEST(AddingAnOp, CodeOfTheDocumentIsTheCompiledCode) {
  std::istringstream document(read("docs/adding_an_op.md"));
  const std::string example = read("tests/autograd/worked_example_test.cpp");
  std::string joined, line, source;  // source: the file named in the comment before a block, else the example
  int excerpts = 0;
  while (std::getline(document, line)) {
    if (line.starts_with("<!-- ")) source = line.substr(5, line.find(" -->") - 5);
    if (line != "```cpp") continue;
    std::string block;
    while (std::getline(document, line) && line != "```") block += line + "\n";
    if (source.empty()) {
      joined += (joined.empty() ? "" : "\n") + block;
    } else {
      EXPECT_NE(read(source).find(block), std::string::npos) << source << " does not contain:\n" << block;
      ++excerpts;
    }
    source.clear();
  }
  EXPECT_EQ(joined, example);
  EXPECT_EQ(excerpts, 3);
}

}  // namespace
}  // namespace lowbit::test
