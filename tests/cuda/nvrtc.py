"""Compiles all CUDA kernels as the program does, with NVRTC, which needs no GPU: `pip install nvidia-cuda-nvrtc`.

Prints how many kernels there are. Fails if one does not compile, and if the option that forbids contraction does not: then the code
would have no fewer fused multiply-adds than with contraction allowed.
"""

import ctypes
import pathlib
import re
import site
import sys

KERNELS = pathlib.Path(__file__).parents[2] / "src" / "cuda" / "kernels.cu"
# cp.async came with 8.0.
ARCHITECTURES = ("compute_80", "compute_90")


def library():
    """NVRTC, as the package has it or the system."""
    for folder in (*site.getsitepackages(), site.getusersitepackages()):
        for path in sorted(pathlib.Path(folder).glob("nvidia/*/lib/libnvrtc.so.*")):
            # Loaded first, because NVRTC looks for its other half by name alone.
            for builtins in sorted(path.parent.glob("libnvrtc-builtins.so.*")):
                ctypes.CDLL(str(builtins))
            return ctypes.CDLL(str(path))
    try:
        return ctypes.CDLL("libnvrtc.so")
    except OSError:
        sys.exit("no libnvrtc: pip install nvidia-cuda-nvrtc")


def text(nvrtc, program, what):
    """The log or the PTX of a program."""
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    return buffer.value.decode()


def ptx(nvrtc, architecture, contraction):
    """The kernels as PTX."""
    options = [f"--gpu-architecture={architecture}", f"--fmad={contraction}", "--std=c++17", f"--include-path={KERNELS.parent}"]
    program = ctypes.c_void_p()
    source = KERNELS.read_bytes()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None)
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    if nvrtc.nvrtcCompileProgram(program, len(options), encoded) != 0:
        sys.exit(f"{architecture}:\n{text(nvrtc, program, 'ProgramLog')}")
    return text(nvrtc, program, "PTX")


def fused(code):
    """Its fused multiply-adds."""
    return len(re.findall(r"^\s*fma\.", code, re.MULTILINE))


nvrtc = library()
for architecture in ARCHITECTURES:
    code, contracted = ptx(nvrtc, architecture, "false"), ptx(nvrtc, architecture, "true")
    print(f"{architecture}: {code.count('.entry')} kernels, {fused(code)} fused multiply-adds, {fused(contracted)} with contraction")
    if fused(code) >= fused(contracted):
        sys.exit("--fmad=false forbids nothing")
