# Every document that a source mentions exists, and every relative link of a document leads somewhere.
#   cmake -DROOT=<source folder> -P cmake/check_docs.cmake
include(${CMAKE_CURRENT_LIST_DIR}/check_common.cmake)

source_files(sources ${ENGINE_FOLDERS} tests benchmarks)
foreach(file ${sources})
  file(STRINGS ${ROOT}/${file} lines REGEX "docs/[A-Za-z0-9_/]+\\.md")
  foreach(line ${lines})
    string(REGEX MATCH "docs/[A-Za-z0-9_/]+\\.md" document "${line}")
    if(NOT EXISTS ${ROOT}/${document})
      complain("${file}: there is no ${document}")
    endif()
  endforeach()
endforeach()

file(GLOB_RECURSE documents RELATIVE ${ROOT} ${ROOT}/docs/*.md ${ROOT}/data/*.md ${ROOT}/tests/*.md ${ROOT}/benchmarks/*.md)
list(APPEND documents README.md)
foreach(file ${documents})
  get_filename_component(folder ${ROOT}/${file} DIRECTORY)
  file(READ ${ROOT}/${file} text)
  string(REGEX REPLACE "\\[[=&]?\\]\\(" "lambda (" text "${text}")  # C++ in a code block
  string(REPLACE "](" "<link " text "${text}")          # a bracket would end a list item
  string(REGEX MATCHALL "<link [^)# ]+" links "${text}")
  foreach(link ${links})
    string(SUBSTRING "${link}" 6 -1 link)
    if(NOT link MATCHES "^[a-z]+:" AND NOT EXISTS ${folder}/${link})
      complain("${file}: link to ${link} leads nowhere")
    endif()
  endforeach()
endforeach()
list(LENGTH documents count)
finish(docs "${count} documents, every link and mention leads somewhere")
