#!/usr/bin/env python3
"""Write a Hugging Face checkpoint as a GGUF file for llama.cpp, in F32 or with its matrices in BF16.

    python3 reference/hf_to_gguf.py models/smollm2-135m-instruct smollm2.gguf [--bf16]

The reverse of gguf_to_hf.py, by the same names, for the same architectures. There is no tokenizer in the file: whoever runs
it gives token ids. Needs gguf and numpy.
"""

import argparse
import json
import math
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

from gguf_to_hf import ARCHITECTURES, OUTER_NAMES, Failure, to_bf16

# The architecture of a model_type.
MODEL_TYPES = {"gemma3": "gemma3", "gemma3_text": "gemma3", "llama": "llama", "qwen2": "qwen2"}
# What config.json may leave out.
DEFAULTS = {
    "gemma3": {
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    },
    "llama": {"rope_theta": 1e4},
    "qwen2": {"rope_theta": 1e4},
}
SIZES = {"BF16": 2, "F16": 2, "F32": 4}
PREFIXES = ("language_model.", "model.language_model.")
SLIDING = "sliding_attention"


def open_tensors(folder):
    """The text model's tensors of a checkpoint: name, dtype, shape, file and place."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise Failure(f"{folder} has no model*.safetensors")
    for path in files:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, info in header.items():
            if "vision_tower" in name or "multi_modal_projector" in name:
                continue
            if info["dtype"] not in SIZES:
                raise Failure(f"{path}: {name} is {info['dtype']}; bf16, f16 or f32 is expected")
            yield name, info["dtype"], info["shape"], path, 8 + length + info["data_offsets"][0]


def read_f32(dtype, shape, path, place):
    """A tensor's numbers in f32."""
    kinds = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}
    numbers = np.fromfile(path, kinds[dtype], math.prod(shape), offset=place).reshape(shape)
    if dtype == "BF16":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float32)


class Target:
    """How llama.cpp wants a checkpoint."""

    def __init__(self, folder):
        config = json.loads((folder / "config.json").read_text())
        config = config.get("text_config", config)
        model_type = config["model_type"]
        if model_type not in MODEL_TYPES:
            raise Failure(f"{folder} has model_type {model_type}; known are {', '.join(MODEL_TYPES)}")
        self.name = MODEL_TYPES[model_type]
        self.architecture = ARCHITECTURES[self.name]
        self.layer_names = {hf: name for name, hf in self.architecture.names.items()}
        self.outer_names = {hf: name for name, hf in OUTER_NAMES.items()}
        self.config = DEFAULTS[self.name] | config
        self.heads = self.config["num_attention_heads"]
        self.key_heads = self.config.get("num_key_value_heads") or self.heads
        self.head_dim = self.config.get("head_dim") or self.config["hidden_size"] // self.heads
        if self.name != "gemma3" and self.config.get("use_sliding_window"):
            raise Failure(f"{folder} has windows, which llama.cpp does not give to {self.name}")

    def tensor_name(self, name):
        """GGUF's name for a tensor of Hugging Face."""
        for prefix in PREFIXES:
            if name.startswith(prefix):
                name = ("model." + name.removeprefix(prefix).removeprefix("model.")).replace("model.lm_head", "lm_head")
        if name in self.outer_names:
            return self.outer_names[name]
        try:
            _, _, layer, path = name.split(".", 3)
            module, kind = path.rsplit(".", 1)
            return f"blk.{layer}.{self.layer_names[module]}.{kind}"
        except (ValueError, KeyError):
            raise Failure(f"no GGUF name for the tensor {name}") from None

    def values(self, name, numbers):
        """A tensor's numbers as GGUF has them, under its name there."""
        rows = self.architecture.rows(name, len(numbers), self.heads, self.key_heads)
        offset = self.architecture.offset(name)
        # Not where it is 0: -0 + 0 is +0.
        return numbers[np.argsort(rows)] + offset if offset else numbers[np.argsort(rows)]

    def rope(self, kind):
        """RoPE's parameters on a kind of layer, in the newer spelling or the older."""
        spelled = self.config.get("rope_parameters") or {}
        spelled = spelled.get(kind, spelled)
        if "rope_theta" in spelled:
            return spelled
        if kind == SLIDING:
            return {"rope_theta": self.config["rope_local_base_freq"]}
        return {"rope_theta": self.config["rope_theta"]} | (self.config.get("rope_scaling") or {})

    def write_metadata(self, writer):
        """What llama.cpp has to know of the model."""
        config = self.config
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.key_heads)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        rope = self.rope("full_attention")
        writer.add_rope_dimension_count(self.head_dim)
        writer.add_rope_freq_base(rope["rope_theta"])
        scaling = rope.get("rope_type", rope.get("type", "default"))
        if scaling == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        elif scaling != "default":
            raise Failure(f"RoPE is scaled as {scaling}; default or linear is expected")
        if self.name == "gemma3":
            self.write_windows(writer)
        writer.add_vocab_size(config["vocab_size"])
        writer.add_tokenizer_model("no_vocab")

    def write_windows(self, writer):
        """Which layers have a window, and how RoPE turns there."""
        writer.add_sliding_window(self.config["sliding_window"])
        kinds = self.config.get("layer_types") or []
        if "full_attention" in kinds:
            period = kinds.index("full_attention") + 1
            writer.add_uint32("gemma3.attention.sliding_window_pattern", period)
        writer.add_float32("gemma3.rope.freq_base_swa", self.rope(SLIDING)["rope_theta"])


def write_base(folder, path, bf16):
    """Writes the checkpoint in `folder` as the GGUF file `path`, one tensor in memory at a time; gives its config."""
    target = Target(folder)
    writer = gguf.GGUFWriter(path, target.name)
    target.write_metadata(writer)
    tensors = [(target.tensor_name(name), *rest) for name, *rest in open_tensors(folder)]
    for name, _, shape, _, _ in tensors:
        raw = bf16 and len(shape) > 1
        kind = gguf.GGMLQuantizationType.BF16 if raw else gguf.GGMLQuantizationType.F32
        size = math.prod(shape) * (2 if raw else 4)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, dtype, shape, source, place in tensors:
        numbers = target.values(name, read_f32(dtype, shape, source, place))
        raw = bf16 and len(shape) > 1
        writer.write_tensor_data(np.frombuffer(to_bf16(numbers), np.uint8) if raw else numbers)
    writer.close()
    return target.config


def main():
    parser = argparse.ArgumentParser(description="Write a Hugging Face checkpoint as GGUF for llama.cpp.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--bf16", action="store_true", help="matrices in BF16; otherwise F32")
    arguments = parser.parse_args()
    try:
        write_base(arguments.folder, arguments.gguf, arguments.bf16)
    except (Failure, OSError) as error:
        sys.exit(f"hf_to_gguf.py: {error}")


if __name__ == "__main__":
    main()
