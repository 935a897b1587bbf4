#!/usr/bin/env python3
"""Write the weights of the small random checkpoints in reference/checkpoints/.

    pip install -r reference/requirements.txt
    python3 reference/make_checkpoints.py                  # all of them, in place
    python3 reference/make_checkpoints.py --only gpt2 --output DIR

Each folder's config.json, and preprocessor_config.json where it sees, is written by hand, in the spelling of the
published checkpoints of its family and year; this script adds the tensors, under the names that those checkpoints have.
CHECKPOINTS says what each one covers. No size is larger than it must be, and few are powers of two. The same seed gives the same bytes.

hf_golden.py reads these folders and writes what Hugging Face transformers computes from them.
"""

import argparse
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from transformers.utils import logging

FOLDER = Path(__file__).resolve().parent / "checkpoints"

CHECKPOINTS = {
    # Gemma 3, in what the 270M does not cover.
    "window-1": "on a local layer a token sees only itself; old spelling",
    "window-3": "global layers where no pattern would put them; new spelling",
    "rope-factor-8": "the scaling of the 4B and larger on the global layers; old spelling",
    "multimodal": "the layout of the 4B: text_config nested and with most fields left to their defaults, a vision tower "
    "beside, tensors named language_model.model.*; new spelling of RoPE",
    "untied-head": "lm_head.weight is stored, in bf16; old spelling, which left the RoPE bases to their defaults",
    "grouped-queries": "three queries share a key; the attention scale is that of the 27B; f16; new spelling",
    "odd-sizes": "no size is a multiple of 4; f64; old spelling. Hugging Face wants hidden_size to be a multiple of the heads",
    "all-global": "no local layer, and no sliding_window said; two shards and an index; new spelling",
    "gemma3-bias": "biases on q, k, v and o",
    # Gemma 3 with pictures. mm_soft_emb_norm has the tower's layer_norm_eps.
    "vision-window": "the published layout of the 4B; an image is longer than the sliding window, two of three layers slide",
    "vision-no-pooling": "as many image tokens as patches; an eps that is felt; bf16; names as transformers 4.52 to 4.57 has them in memory",
    "vision-odd-sizes": "pixels beyond the last patch, patches beyond the last pooled one; a pooling head, which nobody asks; f64; "
    "names without vision_model, as transformers 5 saves them",
    # Other families.
    "gemma": "Gemma 1: no post-norms, a single key head, head_dim given",
    "gemma2": "both soft-caps, low enough to be felt; every other layer slides; an attention scale of its own",
    "llama-2": "old spelling without head_dim; untied head; two shards; rotary_emb.inv_freq stored as in the first checkpoints",
    "llama-3": "llama3 RoPE: of five pairs two are kept, one is blended, two are divided; three queries a key; tied head; new spelling",
    "llama-biases": "attention_bias and mlp_bias; linear RoPE under its oldest name; odd sizes; f64",
    "mistral": "every layer slides; head_dim is not hidden_size / heads",
    "qwen2": "biases on q, k and v; the last two of three layers slide; tied head",
    "qwen3": "norms of q and k; yarn RoPE: of six pairs one is kept, one is blended; norms stored in f32 beside bf16",
    "mixtral": "two of four experts a token",
    "falcon-7b": "attention and MLP in parallel behind one norm; one key head; fused qkv; tied head",
    "falcon-40b": "in parallel behind two norms; qkv fused group by group, three queries a key",
    "falcon-rw": "in sequence; qkv fused head by head; biases; RoPE, where the published ones have ALiBi",
    "gpt2": "learned positions; matrices stored [in, out]; concatenated qkv; names without `transformer.`; masks stored as attn.bias",
    "gptj": "in parallel behind one norm; RoPE on neighbours, on 6 of 16 coordinates; biases in the MLP and the head",
    "phi": "in parallel behind one norm; RoPE on 4 of 12 coordinates (0.4 * 12, rounded down); biases everywhere",
    "olmo2": "norms after attention and MLP only; norms of q and k over all heads at once",
}
SHARD_SIZE = {"all-global": "70KB", "llama-2": "40KB"}
# What the seed is made from, where it is not the name. Mixtral's is one of which no router's second and third choice are
# so close, over the tokens of its golden data, that rounding to bf16 changes the experts.
SEED = {"mixtral": "mixtral 186"}
# How names are spelled other than transformers 5 saves them: what they begin with there, and what in the file.
SPELLING = {
    "vision-window": {"vision_tower.": "vision_tower.vision_model."},
    "vision-no-pooling": {
        "vision_tower.": "model.vision_tower.vision_model.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "language_model.model.": "model.language_model.",
    },
}


def weight(name, shape, config, gain, random):
    """A random f64 weight of a language model, scaled so that nothing in it degenerates.

    The scale of a norm is 1 ± 0.3; biases are ± 0.3. Embeddings make logits of a few units, routers a clear choice.
    Other linear maps keep the size of their input. `gain` is that of queries and keys, by the names of the tensors
    that have it.
    """
    values = random.standard_normal(shape)
    scale = next((gain[suffix] for suffix in gain if name.endswith(suffix)), 1.0)
    if name.endswith(".bias"):
        return 0.3 * values
    if len(shape) == 1:  # a norm
        stored = scale - 1 if config.model_type.startswith("gemma") else scale
        return stored + 0.3 * values
    if name.endswith(("embed_tokens.weight", "word_embeddings.weight", "wte.weight", "lm_head.weight")):
        return 2.0 * values / config.hidden_size**0.5
    if name.endswith("wpe.weight"):
        return 0.3 * values
    if name.endswith("mlp.gate.weight"):
        scale = 3.0
    fan_in = shape[0] if config.model_type == "gpt2" else shape[-1]
    return values / fan_in**0.5 * scale


def vision_weight(name, shape, config, random):
    """As `weight`, of the vision tower and what projects it.

    A patch keeps the size of its pixels, and positions are as large; attention scores are about ± 1.5.
    """
    values = random.standard_normal(shape)
    if config.image_token_id >= config.text_config.vocab_size or ".head." in name:  # nothing asks for them
        return 0.1 * values
    if name.endswith(".bias"):
        return 0.3 * values
    if len(shape) == 1:  # a norm; RMSNorm's scale is stored less 1
        return 0.3 * values + (0.0 if "mm_soft_emb_norm" in name else 1.0)
    if name.endswith("position_embedding.weight"):
        return 0.5 * values
    fan_in = shape[0] if name.endswith("mm_input_projection_weight") else np.prod(shape[1:])
    gain = 1.5**0.5 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
    return values / fan_in**0.5 * gain


def query_and_key_gain(config, keys):
    """{suffix of a tensor's name: factor} that makes attention scores about ± 1.5, far from uniform."""
    scores = 1.5
    if hasattr(config, "query_pre_attn_scalar"):
        scores *= (config.query_pre_attn_scalar / config.head_dim) ** 0.5
    if any(key.endswith("q_norm.weight") for key in keys):
        suffixes = ("q_norm.weight", "k_norm.weight")
    else:
        suffixes = ("q_proj.weight", "k_proj.weight", "c_attn.weight", "query_key_value.weight")
    return dict.fromkeys(suffixes, scores**0.5)


def random_model(config, random):
    """A model of that configuration whose parameters are random, in the dtype that it is stored in."""
    model = getattr(transformers, config.architectures[0])(config)
    model.to(config.dtype or torch.float32)
    text = config.get_text_config()
    parameters = dict(sorted(model.named_parameters()))
    gain = query_and_key_gain(text, parameters)
    with torch.no_grad():
        for key, parameter in parameters.items():
            shape = tuple(parameter.shape)
            if "vision" in key or "multi_modal" in key:
                values = vision_weight(key, shape, config, random)
            else:
                values = weight(key, shape, text, gain, random)
            parameter.copy_(torch.from_numpy(values))
    return model


def as_published(name, model):
    """The model as the published checkpoints of its family were saved, with what transformers no longer writes."""
    if name == "gpt2":
        for block in model.transformer.h:
            mask = torch.ones(model.config.n_positions, model.config.n_positions).tril()
            block.attn.register_buffer("bias", mask[None, None])
        return model.transformer
    if name == "llama-2":
        for layer in model.model.layers:
            layer.self_attn.rotary_emb = torch.nn.Module()
            layer.self_attn.rotary_emb.register_buffer("inv_freq", model.model.rotary_emb.inv_freq.clone())
    if name == "qwen3":
        for module in model.modules():
            if isinstance(module, transformers.models.qwen3.modeling_qwen3.Qwen3RMSNorm):
                module.float()
    return model


def respell(file, spelling):
    """Renames the tensors of a file, each by the first beginning in `spelling` that it has."""
    tensors = {}
    for name, tensor in load_file(file).items():
        old = next((old for old in spelling if name.startswith(old)), "")
        tensors[spelling.get(old, "") + name.removeprefix(old)] = tensor
    save_file(tensors, file, metadata={"format": "pt"})


def make(name, folder):
    """Writes one checkpoint."""
    written = {path.name: path.read_bytes() for path in (FOLDER / name).glob("*config.json")}
    config = AutoConfig.from_pretrained(FOLDER / name)
    model = random_model(config, np.random.default_rng(zlib.crc32(SEED.get(name, name).encode())))

    shutil.rmtree(folder, ignore_errors=True)
    as_published(name, model).save_pretrained(folder, max_shard_size=SHARD_SIZE.get(name, "1GB"))
    if name in SPELLING:
        respell(folder / "model.safetensors", SPELLING[name])
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file, content in written.items():  # save_pretrained's config.json spells every field out in the newest way
        (folder / file).write_bytes(content)
    for file in folder.iterdir():
        file.chmod(0o644)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--only", help="make only this one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for name in CHECKPOINTS:
        if arguments.only in (None, name):
            folder = arguments.output / name
            make(name, folder)
            size = sum(file.stat().st_size for file in folder.iterdir())
            print(f"{name}: {size} bytes in {len(list(folder.iterdir()))} files")


if __name__ == "__main__":
    main()
