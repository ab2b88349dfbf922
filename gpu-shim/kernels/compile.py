"""Compiles CUDA C to PTX with NVRTC from its package: compile.py SOURCE ARCHITECTURE.

The PTX goes to standard output, what the compiler has to say to standard error. Needs no GPU and
no driver. `cargo xtask ptx` runs it.
"""

import ctypes
import pathlib
import sys

import nvidia.cuda_nvrtc


def main() -> int:
    source, architecture = pathlib.Path(sys.argv[1]), sys.argv[2]
    folder = pathlib.Path(nvidia.cuda_nvrtc.__file__).parent
    nvrtc = ctypes.CDLL(str(folder / "lib" / "libnvrtc.so.12"))
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p

    def check(result: int) -> None:
        if result != 0:
            sys.exit(f"compile.py: {nvrtc.nvrtcGetErrorString(result).decode()}")

    program = ctypes.c_void_p()
    # The name is part of the PTX where something is named after its file: never a whole path.
    name, text = source.name.encode(), source.read_bytes()
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None))
    words = [f"--gpu-architecture={architecture}", "--std=c++14"]
    options = (ctypes.c_char_p * len(words))(*(word.encode() for word in words))
    compiled = nvrtc.nvrtcCompileProgram(program, len(words), options)
    said = fetch(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program, check)
    sys.stderr.write(said)
    check(compiled)
    sys.stdout.write(fetch(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program, check))
    return 0


def fetch(get_size, get_text, program, check) -> str:
    """A text of the program; its size includes the NUL at its end."""
    size = ctypes.c_size_t()
    check(get_size(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    check(get_text(program, text))
    return text.value.decode()


sys.exit(main())
