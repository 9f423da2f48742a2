# The CUDA sources, as the library rlal_fast_cuda: by nvcc, or as C++ for the emulator.
if(NOT RLAL_FAST_CUDA MATCHES "^(|0|1|emulated)$")
  message(FATAL_ERROR "RLAL_FAST_CUDA is '${RLAL_FAST_CUDA}', expected 0, 1 or emulated, or unset")
endif()
if(RLAL_FAST_CUDA STREQUAL "0")
  return()
endif()

set(cuda_folder ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda)
file(GLOB cuda_sources CONFIGURE_DEPENDS ${cuda_folder}/*.cu ${cuda_folder}/*.cpp)

if(RLAL_FAST_CUDA STREQUAL "emulated")
  file(GLOB kernel_sources CONFIGURE_DEPENDS ${cuda_folder}/*.cu)
  set_source_files_properties(${kernel_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
  add_library(rlal_fast_cuda OBJECT ${cuda_sources} ${cuda_folder}/emulator/emulator.cpp)
  # Kernels see the same bytes as 16-bit numbers and as words. The emulator changes stacks by longjmp,
  # which the fortified one takes for an attack.
  target_compile_options(rlal_fast_cuda PRIVATE
    -Wall -Wextra -Wno-unknown-pragmas -fno-strict-aliasing -U_FORTIFY_SOURCE)
  target_compile_definitions(rlal_fast_cuda PUBLIC
    RLAL_FAST_CUDA="emulated" RLAL_FAST_CUDA_ARCHITECTURES="emulated" RLAL_FAST_CUDA_EMULATED)
else()
  find_program(nvcc nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
  if(nvcc AND NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    set(ENV{CUDACXX} ${nvcc})
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    if(RLAL_FAST_CUDA STREQUAL "1")
      message(FATAL_ERROR "RLAL_FAST_CUDA=1, but no nvcc was found that works with this C++ "
        "compiler: install the CUDA toolkit, set CUDACXX to its nvcc, or CUDAHOSTCXX to a compiler "
        "that it supports")
    endif()
    message(STATUS "No working nvcc: built without CUDA")
    return()
  endif()
  set(CMAKE_CUDA_ARCHITECTURES OFF) # said below
  enable_language(CUDA)

  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE known)
  set(codes "")
  foreach(number IN LISTS RLAL_FAST_CUDA_ARCHITECTURES)
    string(REGEX REPLACE "a$" "" listed ${number}) # nvcc lists 90, and knows 90a with it
    if(known MATCHES "compute_${listed}[^0-9]")
      list(APPEND codes ${number})
    endif()
  endforeach()
  if(NOT codes)
    message(FATAL_ERROR "nvcc knows none of the architectures ${RLAL_FAST_CUDA_ARCHITECTURES}: "
      "set RLAL_FAST_CUDA_ARCHITECTURES, or RLAL_FAST_CUDA=0")
  endif()
  list(GET codes 0 oldest)
  set(generate "")
  foreach(number IN LISTS codes)
    list(APPEND generate "-gencode=arch=compute_${number},code=sm_${number}")
  endforeach()
  list(APPEND generate "-gencode=arch=compute_${oldest},code=compute_${oldest}")
  list(TRANSFORM codes PREPEND "sm_")
  list(JOIN codes " " architectures)
  message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${architectures}, and PTX for ${oldest}")

  add_library(rlal_fast_cuda OBJECT ${cuda_sources})
  set_target_properties(rlal_fast_cuda PROPERTIES
    CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden
    CUDA_RUNTIME_LIBRARY Static)
  target_compile_options(rlal_fast_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${generate}>)
  target_compile_definitions(rlal_fast_cuda PUBLIC RLAL_FAST_CUDA="${CMAKE_CUDA_COMPILER_VERSION}"
    RLAL_FAST_CUDA_ARCHITECTURES="${architectures}")
endif()
target_include_directories(rlal_fast_cuda PUBLIC csrc)
