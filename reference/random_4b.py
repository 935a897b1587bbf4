#!/usr/bin/env python3
"""Write a random checkpoint of the exact shape of google/gemma-3-4b-it: 8.6 GB in bf16, in two files.

    python3 reference/random_4b.py models/random-4b --tokenizer models/gemma-3-270m
    python3 reference/random_4b.py DIR --tokenizer DIR --layers 2 --vision-layers 2       the same, but shallow

For what only size shows, time and memory, where the real one cannot be had. What it says means nothing.
config.json, the names of the tensors and their spelling are those of the published one; the tokenizer is that of any
Gemma 3, copied. It needs NumPy, keeps a piece of one tensor at a time, and the same seed gives the same bytes.

The weights keep activations at their size: a matrix has a standard deviation of 1 / sqrt(inputs), and logits are a few units.
"""

import argparse
import json
import shutil
import sys
import zlib
from pathlib import Path
from statistics import NormalDist

import numpy as np

VOCABULARY, HIDDEN, MLP, HEADS, KV_HEADS, HEAD_DIM = 262_208, 2560, 10_240, 8, 4, 256
VISION, VISION_MLP, SIDE, PATCH = 1152, 4304, 896, 14
IMAGE_TOKENS = 256
CONFIG = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255_999,
    "eoi_token_index": 256_000,
    "eos_token_id": [1, 106],
    "image_token_index": 262_144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": IMAGE_TOKENS,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {
        "hidden_size": VISION,
        "image_size": SIDE,
        "intermediate_size": VISION_MLP,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": PATCH,
        "vision_use_head": False,
    },
}
PREPROCESSOR = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_pan_and_scan": None,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Gemma3ImageProcessor",
    "image_seq_length": IMAGE_TOKENS,
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Gemma3Processor",
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": SIDE, "width": SIDE},
}
IMAGE_WORDS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
SHARD_BYTES = 5 * 10**9
PIECE = 1 << 24  # weights


def text_tensors(layers):
    """{name: shape} of the language model."""
    tensors = {"embed_tokens.weight": (VOCABULARY, HIDDEN), "norm.weight": (HIDDEN,)}
    norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    layer = {f"{name}_layernorm.weight": (HIDDEN,) for name in norms}
    layer |= {f"self_attn.{name}_norm.weight": (HEAD_DIM,) for name in "qk"}
    layer |= {"self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN), "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM)}
    layer |= {f"self_attn.{name}_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN) for name in "kv"}
    layer |= {f"mlp.{name}_proj.weight": (MLP, HIDDEN) for name in ("gate", "up")}
    layer |= {"mlp.down_proj.weight": (HIDDEN, MLP)}
    return tensors | {f"layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}


def vision_tensors(layers):
    """{name: shape} of the vision tower."""

    def with_bias(name, *shape):
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    tensors = with_bias("embeddings.patch_embedding", VISION, 3, PATCH, PATCH) | with_bias("post_layernorm", VISION)
    tensors["embeddings.position_embedding.weight"] = ((SIDE // PATCH) ** 2, VISION)
    layer = with_bias("layer_norm1", VISION) | with_bias("layer_norm2", VISION)
    for name in ("q", "k", "v", "out"):
        layer |= with_bias(f"self_attn.{name}_proj", VISION, VISION)
    layer |= with_bias("mlp.fc1", VISION_MLP, VISION) | with_bias("mlp.fc2", VISION, VISION_MLP)
    return tensors | {f"encoder.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}


def all_tensors(layers, vision_layers):
    """{name: shape}, in the order of the files."""
    projector = {"mm_input_projection_weight": (VISION, HIDDEN), "mm_soft_emb_norm.weight": (VISION,)}
    parts = {
        "language_model.model.": text_tensors(layers),
        "multi_modal_projector.": projector,
        "vision_tower.vision_model.": vision_tensors(vision_layers),
    }
    return {part + name: shape for part, tensors in parts.items() for name, shape in tensors.items()}


def moments(name, shape):
    """The mean and the standard deviation of a tensor's weights."""
    if name.endswith(".bias"):
        return 0.0, 0.1
    if len(shape) == 1:  # a norm: LayerNorm's scale, and RMSNorm's less 1
        # The last norm makes the logits a few units, where the embeddings are so small that the head does not echo them.
        return 3.0 if name.endswith("model.norm.weight") else float("vision_tower" in name), 0.1
    if "position_embedding" in name:
        return 0.0, 0.5
    if "embed_tokens" in name:
        return 0.0, 0.5 / HIDDEN**0.5
    inputs = shape[0] if name.endswith("mm_input_projection_weight") else np.prod(shape[1:])
    return 0.0, float(inputs) ** -0.5


NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 65_536) for i in range(65_536)])


def weights(name, shape, seed):
    """Yields the bytes of a tensor in bf16: uniform 16-bit numbers, each the normal quantile that it stands for."""
    mean, deviation = moments(name, shape)
    wide = (mean + deviation * NORMAL).astype(np.float32).view(np.uint32)
    table = ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype("<u2")  # to the nearest, ties to even
    bits = np.random.PCG64([seed, zlib.crc32(name.encode())])
    count = int(np.prod(shape))
    for start in range(0, count, PIECE):
        drawn = bits.random_raw(-(-min(PIECE, count - start) // 4)).astype("<u8", copy=False).view("<u2")
        yield table[drawn[: count - start]]


def shards(tensors):
    """The tensors in lists of at most SHARD_BYTES."""
    lists, size = [[]], 0
    for name, shape in tensors.items():
        length = 2 * int(np.prod(shape))
        if lists[-1] and size + length > SHARD_BYTES:
            lists.append([])
            size = 0
        lists[-1].append(name)
        size += length
    return lists


def write_shard(path, names, tensors, seed):
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        start, end = end, end + 2 * int(np.prod(tensors[name]))
        header[name] = {"dtype": "BF16", "shape": tensors[name], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    unfinished = path.with_suffix(".part")
    with open(unfinished, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for piece in weights(name, tensors[name], seed):
                file.write(piece)
    unfinished.rename(path)
    print(f"{path}: {path.stat().st_size} bytes", flush=True)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_tokenizer(source, folder):
    shutil.copy(source / "tokenizer.json", folder)
    named = json.loads((source / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", named | IMAGE_WORDS | {"extra_special_tokens": IMAGE_WORDS})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write it")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a Gemma 3 with its tokenizer")
    parser.add_argument("--layers", type=int, default=34)
    parser.add_argument("--vision-layers", type=int, default=27)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tensors = all_tensors(arguments.layers, arguments.vision_layers)
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(folder).free, 2 * sum(int(np.prod(shape)) for shape in tensors.values())
    if free < needed + 2**30:
        raise SystemExit(f"{folder}: {needed / 1e9:.1f} GB and 1 GB to spare are needed, {free / 1e9:.1f} GB are free")

    write_tokenizer(arguments.tokenizer, folder)
    CONFIG["text_config"]["num_hidden_layers"] = arguments.layers
    CONFIG["vision_config"]["num_hidden_layers"] = arguments.vision_layers
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    write_json(folder / "processor_config.json", {"image_seq_length": IMAGE_TOKENS, "processor_class": "Gemma3Processor"})
    lists = shards(tensors)
    files = [f"model-{i + 1:05}-of-{len(lists):05}.safetensors" for i in range(len(lists))]
    for file, names in zip(files, lists):
        write_shard(folder / file, names, tensors, arguments.seed)
    places = {name: file for file, names in zip(files, lists) for name in names}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": needed}, "weight_map": places})


if __name__ == "__main__":
    sys.exit(main())
