#!/usr/bin/env python3
"""Write a GGUF file's model as Hugging Face names and stores it: weights in bf16, tokenizer, chat template.

    python3 reference/gguf_to_hf.py MODEL.gguf FOLDER

writes FOLDER/model.safetensors, FOLDER/chat_template.jinja where the file has a template, and FOLDER/tokenizer.json
where the file's tokenizer is a byte-level one that is known here. Needs gguf and numpy; fetch_models.py calls it in an
environment that has them. Numbers are dequantised to f32 and rounded to bf16.
"""

import argparse
import json
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

# GGUF's name for a part of a layer, and Hugging Face's, by architecture.
LLAMA = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA3 = LLAMA | {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True)
class Architecture:
    """How GGUF files of an architecture store what Hugging Face stores otherwise; hf_to_gguf.py goes the other way."""

    # GGUF's name for a part of a layer, and Hugging Face's.
    names: dict
    # What a norm's weight is more there. f32 holds both exactly.
    norm_offset: int = 0
    # Whether the rows of each head of q and k are so that neighbours turn together.
    neighbours: bool = False

    def rows(self, name, count, heads, key_heads):
        """The places in GGUF of a tensor's rows, in the order in which Hugging Face stores them.

        Where neighbours turn together, Hugging Face has the first of all pairs before the second of all.
        """
        match = re.search(r"attn_(q|k)\.", name)
        if not (self.neighbours and match):
            return np.arange(count)
        heads = heads if match[1] == "q" else key_heads
        return np.arange(count).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def offset(self, name):
        """How much more a tensor's numbers are in GGUF."""
        return np.float32(self.norm_offset if name.endswith("norm.weight") else 0)


ARCHITECTURES = {
    "gemma3": Architecture(GEMMA3, norm_offset=1),
    "llama": Architecture(LLAMA, neighbours=True),
    "qwen2": Architecture(LLAMA),
}
OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

# How a byte-level tokenizer cuts a text before its merges, by GGUF's name for that.
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PRE_TOKENIZERS = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
    }
}
CONTROL_TOKEN = 3


class Failure(Exception):
    """Something that the user has to read; ends the script with exit status 1."""


class Source:
    """A GGUF file."""

    def __init__(self, path):
        self.reader = gguf.GGUFReader(path)
        name = self.field("general.architecture")
        if name not in ARCHITECTURES:
            raise Failure(f"{path} has architecture {name}; known are {', '.join(ARCHITECTURES)}")
        self.architecture = ARCHITECTURES[name]
        self.heads = [self.field(f"{name}.attention.head_count{suffix}") for suffix in ("", "_kv")]

    def field(self, name):
        """A field of the metadata, or None."""
        field = self.reader.get_field(name)
        return field and field.contents()

    def hf_name(self, name):
        """Hugging Face's name for a tensor."""
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if match:
            return f"model.layers.{match[1]}.{self.architecture.names[match[2]]}.{match[3]}"
        return OUTER_NAMES[name]

    def values(self, tensor, at_once=16384):
        """The f32 values of a tensor as Hugging Face has them, some rows at a time, so that memory stays small."""
        rows = self.architecture.rows(tensor.name, len(tensor.data), *self.heads)
        for start in range(0, len(rows), at_once):
            data = tensor.data[rows[start : start + at_once]]
            yield gguf.dequantize(data, tensor.tensor_type) - self.architecture.offset(tensor.name)


def write_weights(source, path):
    """Writes all tensors in bf16, in the order of their names."""
    tensors = {source.hf_name(tensor.name): tensor for tensor in source.reader.tensors}
    shapes = {name: [int(size) for size in reversed(tensor.shape)] for name, tensor in tensors.items()}
    with open(path, "wb") as file:
        file.write(safetensors_header(shapes))
        for name in sorted(tensors):
            for values in source.values(tensors[name]):
                file.write(to_bf16(values))


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


def to_bf16(values):
    """Finite f32 values as the bytes of bf16, rounded to nearest, ties to even."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise Failure("a dequantised weight is not finite")
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def tokenizer_json(source):
    """A byte-level tokenizer as tokenizer.json has it, or None for one that is not known here."""
    pre_tokenizer = PRE_TOKENIZERS.get(source.field("tokenizer.ggml.pre"))
    if source.field("tokenizer.ggml.model") != "gpt2" or pre_tokenizer is None:
        return None
    tokens, types = source.field("tokenizer.ggml.tokens"), source.field("tokenizer.ggml.token_type")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for id, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind == CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": source.field("tokenizer.ggml.merges"),
        },
    }


def convert(path, folder):
    """Writes what the GGUF file has of a checkpoint into a folder."""
    source = Source(path)
    write_weights(source, folder / "model.safetensors")
    template = source.field("tokenizer.chat_template")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="\n")
    tokenizer = tokenizer_json(source)
    if tokenizer is not None:
        text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
        (folder / "tokenizer.json").write_text(text, encoding="utf-8", newline="\n")


def main():
    parser = argparse.ArgumentParser(description="Write a GGUF file's model as a Hugging Face checkpoint in bf16.")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    try:
        convert(arguments.gguf, arguments.folder)
    except (Failure, OSError) as error:
        sys.exit(f"gguf_to_hf.py: {error}")


if __name__ == "__main__":
    main()
