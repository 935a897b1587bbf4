#!/usr/bin/env python3
"""Compare the NumPy reference with Hugging Face transformers in float64, module by module and setting by setting.

    pip install -r reference/requirements.txt
    python3 reference/check_numpy.py > reference/check_numpy.txt

First every small checkpoint as it is: the largest difference of the logits, and of all modules that both have. Then
CASES, which change config.json: the largest difference again, and how far the change moves the logits, so that one that
neither side reads would be seen. Run by hand; exits with 1 where something is off by more than TOLERANCE. transformers
computes norms, softmax and RoPE in float32 even here, which is what is left.
"""

import datetime
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from oracle.files import read_ids
from oracle.model import Model, trace

TOLERANCE = 2e-5
REFERENCE = Path(__file__).resolve().parent
ABSENT = object()

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
DYNAMIC = {"type": "dynamic", "factor": 4.0}
CASES = [
    ("llama-2", {"rms_norm_eps": 0.1}),
    ("llama-2", {"rope_theta": ABSENT}),
    ("llama-2", {"head_dim": None, "num_key_value_heads": ABSENT}),
    ("llama-2", {"rope_scaling": DYNAMIC, "max_position_embeddings": 16}),
    ("llama-2", {"rope_scaling": DYNAMIC, "max_position_embeddings": 24}),
    ("llama-3", {"rope_parameters": ABSENT, "rope_theta": 1000.0}),
    ("llama-3", {"rope_parameters": ABSENT, "rope_theta": 1000.0, "rope_scaling": LLAMA3}),
    ("llama-3", {"rope_parameters": LLAMA3 | {"rope_theta": 1000.0, "original_max_position_embeddings": 64}}),
    ("llama-biases", {"rope_scaling": None}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": ABSENT}),
    ("qwen2", {"use_sliding_window": False}),
    ("qwen2", {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    ("qwen3", {"rope_scaling": None}),
    ("qwen3", {"rope_scaling": YARN | {"factor": 0.5}}),
    ("qwen3", {"rope_scaling": YARN | {"attention_factor": 1.3}}),
    ("qwen3", {"rope_scaling": YARN | {"mscale": 1.2}}),
    ("qwen3", {"rope_scaling": YARN | {"mscale": 1.2, "mscale_all_dim": 0.7}}),
    ("qwen3", {"rope_scaling": YARN | {"truncate": False, "beta_fast": 4, "beta_slow": 0.5}}),
    ("mixtral", {"sliding_window": 3}),
    ("mixtral", {"num_experts_per_tok": 1}),
    ("mixtral", {"num_experts_per_tok": 4}),
    ("gemma", {"hidden_act": "gelu"}),
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma2", {"attn_logit_softcapping": ABSENT}),
    ("gemma2", {"final_logit_softcapping": None}),
    ("gemma2", {"query_pre_attn_scalar": 7}),
    ("gemma2", {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}),
    ("gemma3-bias", {"final_logit_softcapping": 3.0}),
    ("falcon-7b", {"activation": "gelu_new"}),
    ("falcon-7b", {"rope_theta": 100.0}),
    ("falcon-40b", {"num_ln_in_parallel_attn": None}),
    ("falcon-40b", {"layer_norm_epsilon": 0.1}),
    ("falcon-rw", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    ("gpt2", {"activation_function": "gelu"}),
    ("gpt2", {"layer_norm_epsilon": 0.1}),
    ("gptj", {"rotary_dim": 16}),
    ("phi", {"partial_rotary_factor": ABSENT}),
    ("phi", {"partial_rotary_factor": ABSENT, "rope_parameters": {"rope_theta": 1e3, "partial_rotary_factor": 0.7}}),
    ("phi", {"layer_norm_eps": 0.1}),
    ("olmo2", {"rope_parameters": {"rope_type": "default", "rope_theta": 10.0}}),
]


def hugging_face(folder, ids):
    """{module: what it gave, flat} and `logits`, all float64."""
    plainly = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **plainly).eval()
    given = {}
    for name, module in model.named_modules():

        def hook(_, __, output, name=name):
            output = output[0] if isinstance(output, tuple) else output
            if torch.is_tensor(output):
                given[name] = output.clone()  # Falcon adds to its MLP's output in place

        module.register_forward_hook(hook)
    with torch.no_grad():
        given["logits"] = model(torch.tensor([ids])).logits
    heads_first = transformers.models.gemma3.modeling_gemma3.Gemma3Attention
    for name, module in model.named_modules():
        if isinstance(module, heads_first):  # its norms of q and k come after the transposition
            for norm in ("q_norm", "k_norm"):
                given[f"{name}.{norm}"] = given[f"{name}.{norm}"].transpose(1, 2)
    return {name: value.double().numpy().reshape(-1) for name, value in given.items()}


def numpy(folder, ids):
    """The same here, by transformers' names: it calls Mixtral's block_sparse_moe mlp, and multimodal models' text
    model.language_model."""
    record = trace(Model(folder), ids)
    record.setdefault("logits", record["lm_head"])
    nested = "text_config" in json.loads((folder / "config.json").read_text())
    renamed = {}
    for name, value in record.items():
        name = name.replace("block_sparse_moe", "mlp")
        renamed[name.replace("model.", "model.language_model.", 1) if nested else name] = value.reshape(-1)
    return renamed


def differences(ours, theirs):
    """The largest, of the logits and of all modules that both have, and how many those are."""
    both = [name for name in ours if name in theirs and ours[name].size == theirs[name].size]
    worst = max(np.abs(ours[name] - theirs[name]).max() for name in both)
    return np.abs(ours["logits"] - theirs["logits"]).max(), worst, len(both)


def changed(base, change, folder):
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text()) | change
    config = {field: value for field, value in config.items() if value is not ABSENT}
    (folder / "config.json").write_text(json.dumps(config))


def main():
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    print(f"{datetime.date.today()}, transformers {transformers.__version__}, torch {torch.__version__}, numpy {np.__version__}\n")
    good, logits = True, {}
    print("logits   modules        as they are")
    for folder in sorted((REFERENCE / "checkpoints").iterdir()):
        ids = read_ids(REFERENCE / "golden" / f"{folder.name}.safetensors", None)
        ours = numpy(folder, ids)
        logits[folder.name] = ids, ours["logits"]
        distance, worst, count = differences(ours, hugging_face(folder, ids))
        good &= bool(worst <= TOLERANCE)
        print(f"{distance:.1e}  {worst:.1e} of {count:3} {folder.name}", flush=True)

    print("\nlogits   moved by  changed")
    for base, change in CASES:
        ids, before = logits[base]
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / base
            changed(REFERENCE / "checkpoints" / base, change, folder)
            ours = numpy(folder, ids)
            distance, worst, _ = differences(ours, hugging_face(folder, ids))
        good &= bool(worst <= TOLERANCE)
        what = json.dumps({field: "absent" if value is ABSENT else value for field, value in change.items()})
        print(f"{distance:.1e}  {np.abs(ours['logits'] - before).max():.1e}   {base} {what}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
