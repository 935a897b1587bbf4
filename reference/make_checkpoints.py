#!/usr/bin/env python3
"""Write the small random checkpoints of reference/checkpoints/.

    pip install -r reference/requirements.txt
    python3 reference/make_checkpoints.py --output reference/checkpoints

Together they cover what the 270M does not: windows of 1 and 3, scaled RoPE, an untied head, grouped
queries, odd sizes, an attention scale that is not head_dim, layers that are all global, every storage
dtype, both spellings of the configuration, the layout of the multimodal models, and shards.
CHECKPOINTS below says which covers what. The same seed gives the same bytes.

hf_golden.py reads these folders and writes what Hugging Face transformers computes from them.
"""

import argparse
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig
from transformers.utils import logging

# One entry per checkpoint. `config` is what config.json says, in the spelling that the published
# checkpoints of some year use; `dtype` is how the tensors are stored.
COMMON = {"vocab_size": 101, "bos_token_id": 2, "eos_token_id": 1, "max_position_embeddings": 128}
CHECKPOINTS = {
    # On a local layer a token sees only itself. Old spelling.
    "window-1": {
        "dtype": torch.float32,
        "config": COMMON
        | {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 1,
            "sliding_window_pattern": 2,
            "rope_theta": 1000.0,
            "rope_local_base_freq": 10.0,
        },
    },
    # Global layers where no pattern would put them. New spelling.
    "window-3": {
        "dtype": torch.float32,
        "config": COMMON
        | {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "query_pre_attn_scalar": 6,
            "sliding_window": 3,
            "layer_types": ["full_attention"] + ["sliding_attention"] * 3 + ["full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
            },
        },
    },
    # The scaling of the 4B and larger on the global layers. Old spelling.
    "rope-factor-8": {
        "dtype": torch.float32,
        "config": COMMON
        | {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "query_pre_attn_scalar": 12,
            "sliding_window": 8,
            "sliding_window_pattern": 2,
            "rope_theta": 100.0,
            "rope_local_base_freq": 10.0,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
    },
    # The layout of the 4B: text_config nested and with most fields left to their defaults, a vision
    # tower beside, tensors named language_model.model.*. New spelling of RoPE.
    "multimodal": {
        "dtype": torch.float32,
        "multimodal": True,
        "config": COMMON
        | {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 7,
            "head_dim": 6,
            "query_pre_attn_scalar": 6,
            "sliding_window": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
            },
        },
    },
    # lm_head.weight is stored. Old spelling, which left the RoPE bases to their defaults.
    "untied-head": {
        "dtype": torch.bfloat16,
        "config": COMMON
        | {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 5,
            "sliding_window_pattern": 3,
            "tie_word_embeddings": False,
        },
    },
    # Three queries share a key; the attention scale is that of the 27B. New spelling.
    "grouped-queries": {
        "dtype": torch.float16,
        "config": COMMON
        | {
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "query_pre_attn_scalar": 168,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
            },
        },
    },
    # No size is a multiple of 4. Hugging Face wants hidden_size to be a multiple of the heads. Old spelling.
    "odd-sizes": {
        "dtype": torch.float64,
        "config": COMMON
        | {
            "vocab_size": 103,
            "hidden_size": 33,
            "intermediate_size": 53,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 14,
            "query_pre_attn_scalar": 9,
            "rms_norm_eps": 1e-5,
            "sliding_window": 5,
            "sliding_window_pattern": 2,
            "rope_theta": 1000.0,
            "rope_local_base_freq": 10.0,
        },
    },
    # No local layer, and no sliding_window said; two shards and an index. New spelling.
    "all-global": {
        "dtype": torch.float32,
        "shard": "70KB",
        "config": COMMON
        | {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 10,
            "query_pre_attn_scalar": 10,
            "layer_types": ["full_attention"] * 3,
            "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1000.0}},
        },
    },
}
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def text_weight(name, shape, config, random):
    """A random f64 weight of the language model, scaled so that nothing in it degenerates.

    Norms are about 0 ± 0.3, except q_norm and k_norm, which make the attention scores about ± 1.5, far
    from uniform. Embeddings make logits of a few units. Linear maps keep the size of their input.
    """
    values = random.standard_normal(shape)
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        gain = (1.5 * (config.query_pre_attn_scalar / config.head_dim) ** 0.5) ** 0.5
        return gain - 1 + 0.3 * values
    if name.endswith("norm.weight"):
        return 0.3 * values
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        return 2.0 * values / config.hidden_size**0.5
    return values / shape[1] ** 0.5


def make(name, recipe, folder):
    """Writes one checkpoint."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    text = Gemma3TextConfig(**recipe["config"])
    if recipe.get("multimodal"):
        config = Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=1)
        model = Gemma3ForConditionalGeneration(config)
    else:
        model = Gemma3ForCausalLM(text)

    model.to(recipe["dtype"])
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            shape = tuple(parameter.shape)
            if "vision" in key or "multi_modal" in key:
                values = 0.1 * random.standard_normal(shape)
            else:
                values = text_weight(key, shape, text, random)
            parameter.copy_(torch.from_numpy(values))

    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size=recipe.get("shard", "1GB"))
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_config(recipe, folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def write_config(recipe, folder):
    """Replaces save_pretrained's config.json, which spells every field out in the newest way."""
    architecture = "Gemma3ForConditionalGeneration" if recipe.get("multimodal") else "Gemma3ForCausalLM"
    dtype_key = "dtype" if "rope_parameters" in recipe["config"] else "torch_dtype"
    dtype = str(recipe["dtype"]).removeprefix("torch.")
    config = {"model_type": "gemma3_text"} | recipe["config"]
    if recipe.get("multimodal"):
        config = {
            "model_type": "gemma3",
            "mm_tokens_per_image": 1,
            "text_config": config,
            "vision_config": VISION,
        }
    config = {"architectures": [architecture], dtype_key: dtype} | config
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description="Write the small random checkpoints.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "checkpoints")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for name, recipe in CHECKPOINTS.items():
        folder = arguments.output / name
        make(name, recipe, folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{name}: {size} bytes in {len(list(folder.iterdir()))} files")


if __name__ == "__main__":
    main()
