#!/usr/bin/env python3
"""Record what Hugging Face transformers computes at every point that `context-patch trace` names.

    pip install -r reference/requirements.txt
    python3 reference/hf_trace.py models/gemma-3-270m --prompt "The old clock" --output hf.safetensors

Eager attention, on the CPU, all tokens in one pass. The tensors have the names and shapes of `context-patch trace`,
[tokens, width], in F32 (exact for bf16 too); `--last N` keeps the rows of the last N tokens. The metadata has `model`,
`dtype`, `engine` and `ids`, a JSON list of all tokens that were run.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.gemma3 import modeling_gemma3

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# A layer's modules whose output is recorded, and those whose input is, under the point's name.
OUTPUTS = (
    ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"]
    + [f"self_attn.{module}" for module in ("q_proj", "k_proj", "v_proj", "o_proj")]
    + [f"mlp.{module}" for module in ("gate_proj", "up_proj", "act_fn", "down_proj")]
)
INPUTS = {
    "self_attn.o_proj": "self_attn.mixed",
    "pre_feedforward_layernorm": "residual_mid",
    "mlp.down_proj": "mlp.product",
}


class Recorder:
    """Rows of the last tokens by name; an object that hooks hand their tensors to."""

    def __init__(self, last):
        self.last, self.tensors = last, {}

    def record(self, name, tensor):
        """A tensor [1, tokens, width]."""
        if name in self.tensors:
            raise SystemExit(f"hf_trace.py: {name} was computed twice")
        self.tensors[name] = tensor[0, -self.last :].detach().float().clone().contiguous()

    def record_heads(self, name, tensor):
        """A tensor [1, heads, tokens, head_dim]."""
        self.record(name, tensor.transpose(1, 2).flatten(2))

    def output(self, module, name, record=None):
        """Records what a module gives."""
        record = record or self.record
        module.register_forward_hook(lambda _, __, out: record(name, out[0] if isinstance(out, tuple) else out))

    def input(self, module, name):
        """Records what a module is given."""
        module.register_forward_pre_hook(lambda _, given: self.record(name, given[0]))


def hook(model, recorder):
    """Sets the hooks on a model of transformers."""
    text = model.get_decoder()
    recorder.output(text.embed_tokens, "model.embed_tokens")
    for index, layer in enumerate(text.layers):
        prefix = f"model.layers.{index}"
        recorder.output(layer, prefix)
        for module in OUTPUTS:
            recorder.output(layer.get_submodule(module), f"{prefix}.{module}")
        for module, name in INPUTS.items():
            recorder.input(layer.get_submodule(module), f"{prefix}.{name}")
        for name in ("q_norm", "k_norm"):
            recorder.output(
                layer.self_attn.get_submodule(name), f"{prefix}.self_attn.{name}", recorder.record_heads
            )
    recorder.output(text.norm, "model.norm")
    recorder.output(model.get_output_embeddings(), "lm_head")
    hook_rope(recorder)


def hook_rope(recorder):
    """Records q and k as the attention's function for rotary embeddings gives them, layer after layer."""
    rotate = modeling_gemma3.apply_rotary_pos_emb
    layers = iter(range(10**9))

    def recorded(*args, **kwargs):
        q, k = rotate(*args, **kwargs)
        prefix = f"model.layers.{next(layers)}.self_attn"
        recorder.record_heads(f"{prefix}.q_rope", q)
        recorder.record_heads(f"{prefix}.k_rope", k)
        return q, k

    modeling_gemma3.apply_rotary_pos_emb = recorded


def read_ids(arguments):
    """The tokens to run: of a JSON list, or of a text, <bos> before it."""
    if arguments.ids:
        return json.loads(arguments.ids.read_text())
    return AutoTokenizer.from_pretrained(arguments.model)(arguments.prompt)["input_ids"]


def main():
    parser = argparse.ArgumentParser(description="Record the intermediates of Hugging Face transformers.")
    parser.add_argument("model", type=Path, help="Hugging Face folder")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--prompt", help="text to run")
    given.add_argument("--ids", type=Path, help="file with a JSON list of token ids to run")
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--last", type=int, help="keep the rows of the last N tokens only")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    arguments = parser.parse_args()
    if arguments.last is not None and arguments.last < 1:
        parser.error("--last must be at least 1")
    ids = read_ids(arguments)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=DTYPES[arguments.dtype], attn_implementation="eager"
    ).eval()
    recorder = Recorder(arguments.last or len(ids))
    hook(model, recorder)
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    metadata = {
        "model": str(arguments.model),
        "dtype": arguments.dtype,
        "engine": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "ids": json.dumps(ids),
    }
    save_file(recorder.tensors, arguments.output, metadata)


if __name__ == "__main__":
    main()
