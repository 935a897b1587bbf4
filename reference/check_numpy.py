#!/usr/bin/env python3
"""Compare the NumPy reference with Hugging Face transformers in float64, module by module and setting by setting.

    pip install -r reference/requirements.txt
    python3 reference/check_numpy.py > reference/check_numpy.txt

First every small checkpoint as it is: the largest difference of the logits, and of all modules that both have. Then those
that see, with pictures: the vision tower and the projector among the modules, and how far other pictures move the logits.
Then CASES, which change config.json: the largest difference again, and how far the change moves the logits, so that one
that neither side reads would be seen. Run by hand; exits with 1 where something is off by more than TOLERANCE.

transformers computes norms, softmax and RoPE in float32 in a model of any type; here its float32 is widened, too.
"""

import contextlib
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

from oracle.files import read_ids, read_safetensors
from oracle.model import Model, trace
from oracle.vision import Vision

TOLERANCE = 1e-9
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
VISION_CASES = [
    ("vision-window", {"layer_norm_eps": 0.1}),
    ("vision-window", {"hidden_act": "gelu"}),
    ("vision-no-pooling", {"layer_norm_eps": ABSENT}),
    ("vision-odd-sizes", {"num_attention_heads": 1}),
]


@contextlib.contextmanager
def float32_widened():
    """Has code that asks torch for float32 get float64."""
    float32, widen = torch.float32, torch.Tensor.float
    torch.float = torch.float32 = torch.float64
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float = torch.float32 = float32
        torch.Tensor.float = widen
        torch.set_default_dtype(float32)


def hugging_face(folder, ids, **pictures):
    """{module: what it gave, flat} and `logits`, all float64."""
    plainly = {"attn_implementation": "eager", "experts_implementation": "eager"}
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **plainly)
    with float32_widened(), torch.no_grad():
        model = type(loaded)(loaded.config).eval()  # made again, because RoPE's frequencies are made with the model
        model.load_state_dict(loaded.state_dict())
        given = run_hooked(model, torch.tensor([ids]), pictures)
    heads_first = transformers.models.gemma3.modeling_gemma3.Gemma3Attention
    for name, module in model.named_modules():
        if isinstance(module, heads_first):  # its norms of q and k come after the transposition
            for norm in ("q_norm", "k_norm"):
                given[f"{name}.{norm}"] = given[f"{name}.{norm}"].transpose(1, 2)
        if name in given and isinstance(module, torch.nn.Conv2d):  # channels first
            given[name] = given[name].flatten(2).transpose(1, 2)
    return {name: value.double().numpy().reshape(-1) for name, value in given.items()}


def run_hooked(model, ids, pictures):
    """What each module gives in one pass, and the logits."""
    given = {}
    for name, module in model.named_modules():

        def hook(_, __, output, name=name):
            output = output[0] if isinstance(output, tuple) else output
            if torch.is_tensor(output):
                given[name] = output.clone()  # Falcon adds to its MLP's output in place

        module.register_forward_hook(hook)
    return given | {"logits": model(ids, **pictures).logits}


def numpy(folder, ids):
    """The same here, by transformers' names."""
    return renamed(folder, trace(Model(folder), ids))


def renamed(folder, record):
    """A record under transformers' names: it calls Mixtral's block_sparse_moe mlp, and multimodal models' text
    model.language_model. Pooling gives its image with the channels first, so it is left out."""
    record.setdefault("logits", record["lm_head"])
    nested = "text_config" in json.loads((folder / "config.json").read_text())
    found = {}
    for name, value in record.items():
        name = name.replace("block_sparse_moe", "mlp")
        vision = name.startswith(("model.vision_tower", "model.multi_modal_projector"))
        name = name.replace("model.", "model.language_model.", 1) if nested and not vision else name
        found[name] = value.reshape(-1)
    found.pop("model.multi_modal_projector.avg_pool", None)
    return found


def numpy_with_pictures(folder, ids, pixels):
    """As `numpy`, with the pictures that the image tokens of `ids` stand for, and what their modules give."""
    model, vision = Model(folder), Vision(folder)
    features = vision.project(vision.tower(pixels))
    model.look(ids, np.concatenate(features))
    return renamed(folder, trace(model, ids) | vision.record)


def compare_pictures(folder):
    """differences, over the prompts of the golden data, and the most that other pictures move the logits."""
    given = read_safetensors(REFERENCE / "golden" / f"{folder.name}.images.safetensors")
    image_token = json.loads((folder / "config.json").read_text())["image_token_index"]
    found = []
    for name in (key.removesuffix(".ids") for key in given if key.endswith(".ids")):
        ids, pixels = given[f"{name}.ids"].raw.tolist(), given["pixel_values"].f64()[given[f"{name}.images"].raw]
        ours = numpy_with_pictures(folder, ids, pixels)
        kinds = torch.tensor([ids]) == image_token
        theirs = hugging_face(folder, ids, pixel_values=torch.from_numpy(pixels), token_type_ids=kinds.long())
        moved = np.abs(numpy_with_pictures(folder, ids, -pixels)["logits"] - ours["logits"]).max()
        found.append((*differences(ours, theirs), moved))
    logits, worst, count, moved = zip(*found)
    return max(logits), max(worst), min(count), min(moved), ours["logits"]


def differences(ours, theirs):
    """The largest, of the logits and of all modules that both have, and how many those are."""
    both = [name for name in ours if name in theirs and ours[name].size == theirs[name].size]
    worst = max(np.abs(ours[name] - theirs[name]).max() for name in both)
    return np.abs(ours["logits"] - theirs["logits"]).max(), worst, len(both)


def changed(base, change, folder, vision=False):
    """A copy of a checkpoint with another config.json, or another vision_config in it."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    inner = config["vision_config"] if vision else config
    inner |= change
    for field in [field for field, value in inner.items() if value is ABSENT]:
        del inner[field]
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

    print("\nlogits   modules        moved by  with pictures")
    for folder in sorted((REFERENCE / "checkpoints").glob("vision-*")):
        distance, worst, count, moved, logits[folder.name + ".images"] = compare_pictures(folder)
        good &= bool(worst <= TOLERANCE)
        print(f"{distance:.1e}  {worst:.1e} of {count:3} {moved:.1e}   {folder.name}", flush=True)

    print("\nlogits   moved by  changed")
    for base, change, vision in [(*case, False) for case in CASES] + [(*case, True) for case in VISION_CASES]:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / base
            changed(REFERENCE / "checkpoints" / base, change, folder, vision)
            if vision:
                distance, worst, _, _, after = compare_pictures(folder)
                before = logits[base + ".images"]
            else:
                ids, before = logits[base]
                ours = numpy(folder, ids)
                (distance, worst, _), after = differences(ours, hugging_face(folder, ids)), ours["logits"]
        good &= bool(worst <= TOLERANCE)
        what = json.dumps({field: "absent" if value is ABSENT else value for field, value in change.items()})
        print(f"{distance:.1e}  {np.abs(after - before).max():.1e}   {base} {'vision ' * vision}{what}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
