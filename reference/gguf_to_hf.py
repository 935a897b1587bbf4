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
from pathlib import Path

import gguf
import numpy as np

# GGUF's name for a part of a layer, and Hugging Face's, by architecture.
GEMMA3 = {
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
LLAMA = GEMMA3 | {"ffn_norm": "post_attention_layernorm"}
LAYER_NAMES = {"gemma3": GEMMA3, "llama": LLAMA, "qwen2": LLAMA}
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
        self.architecture = self.field("general.architecture")
        if self.architecture not in LAYER_NAMES:
            raise Failure(f"{path} has architecture {self.architecture}; known are {', '.join(LAYER_NAMES)}")

    def field(self, name):
        """A field of the metadata, or None."""
        field = self.reader.get_field(name)
        return field and field.contents()

    def hf_name(self, name):
        """Hugging Face's name for a tensor."""
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if match:
            return f"model.layers.{match[1]}.{LAYER_NAMES[self.architecture][match[2]]}.{match[3]}"
        return OUTER_NAMES[name]

    def rows(self, tensor):
        """The indices of a tensor's rows in the order in which Hugging Face stores them.

        A `llama` file has the rows of each head of q and k so that neighbours turn together, two by two;
        Hugging Face has the first of all pairs before the second of all.
        """
        count = len(tensor.data)
        match = re.search(r"attn_(q|k)\.", tensor.name)
        if self.architecture != "llama" or not match:
            return np.arange(count)
        heads = self.field("llama.attention.head_count" + ("" if match[1] == "q" else "_kv"))
        return np.arange(count).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def values(self, tensor, at_once=16384):
        """The f32 values of a tensor as Hugging Face has them, some rows at a time, so that memory stays small."""
        rows = self.rows(tensor)
        # Gemma's files store 1 + w for a norm, Hugging Face w. f32 holds both exactly here.
        offset = 1 if self.architecture == "gemma3" and tensor.name.endswith("norm.weight") else 0
        for start in range(0, len(rows), at_once):
            data = tensor.data[rows[start : start + at_once]]
            yield gguf.dequantize(data, tensor.tensor_type) - np.float32(offset)


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
