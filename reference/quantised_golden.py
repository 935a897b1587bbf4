#!/usr/bin/env python3
"""Write golden data: what the Python package `gguf` dequantises ggml's quantised blocks to, in f32.

    pip install -r reference/requirements.txt
    python3 reference/quantised_golden.py

writes reference/golden/quantised.safetensors: for each type TYPE.blocks [blocks, bytes] u8 and TYPE.f32 [blocks, numbers]. The
blocks are random in every bit but those of their f16 factors, which go through SPECIAL, are all -0 and all the least denormal
number, and random and finite after that.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from safetensors.numpy import save_file

# Where a block has its f16 factors, and from there on random bytes.
FACTORS = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
}

# ±0, the least and the largest denormal, the least normal, the largest of both signs, 1; infinity and NaN.
SPECIAL = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x3C00, 0x7C00, 0xFC00, 0x7E00]

# Blocks of 256 numbers and of 32.
COUNT = {256: 15, 32: 24}


def factors(rng, count, shift):
    """A factor of each block as bytes; those of two `shift` are not special in the same order."""
    bits = rng.integers(0, 0x7C00, count, dtype=np.uint16) | rng.integers(0, 2, count, dtype=np.uint16) << 15
    special = [*np.roll(SPECIAL, shift), 0x8000, 0x0001]
    bits[: len(special)] = special
    return bits.view(np.uint8).reshape(count, 2)


def main():
    rng = np.random.default_rng(20)
    tensors = {}
    for name, places in FACTORS.items():
        kind = GGMLQuantizationType[name]
        numbers, size = GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (COUNT[numbers], size), dtype=np.uint8)
        for shift, place in enumerate(places):
            blocks[:, place : place + 2] = factors(rng, len(blocks), 3 * shift)
        with np.errstate(invalid="ignore"):
            tensors[f"{name}.f32"] = quants.dequantize(blocks, kind)
        tensors[f"{name}.blocks"] = blocks
    save_file(tensors, Path(__file__).parent / "golden" / "quantised.safetensors")


if __name__ == "__main__":
    main()
