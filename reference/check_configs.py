#!/usr/bin/env python3
"""Give variants of small checkpoints to Hugging Face transformers and to context-patch, and compare what they make of them.

    pip install -r reference/requirements.txt
    cargo build --release && python3 reference/check_configs.py > reference/check_configs.txt

A case changes config.json, the weights' names or the files of one of reference/checkpoints/. Both programs then run the same
tokens: they agree where their logits are the same, or where both refuse. transformers counts as refusing where it makes up
weights that are missing. "as before" says that the change does not change the logits. A case in which only one of them
refuses has its reason in REASONS. Run by hand; it takes some minutes.
"""

import argparse
import functools
import datetime
import json
import logging
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import huggingface_hub
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import program

IDS = [2, 17, 5, 33, 8, 60, 71, 9, 100, 4, 54, 23, 90, 12]
# Logits of the same weights differ by less, those of other ones by more.
SAME = 2e-4
REFERENCE = program.ROOT / "reference"
CHECKPOINTS = REFERENCE / "checkpoints"
INDEX = "model.safetensors.index.json"
PROMPT = "Ann likes plums. Ann likes"


class Case:
    """A checkpoint to be changed."""

    def __init__(self, folder, base):
        self.folder = folder
        shutil.copytree(REFERENCE / base, folder)

    # -- config.json

    def config(self):
        return json.loads((self.folder / "config.json").read_text())

    def write(self, config):
        """A config as a dictionary, a text or bytes."""
        if isinstance(config, dict):
            config = json.dumps(config)
        if isinstance(config, str):
            config = config.encode()
        (self.folder / "config.json").write_bytes(config)

    # -- weights

    def tensors(self):
        """All tensors of all shards."""
        files = sorted(self.folder.glob("*.safetensors"))
        return {name: tensor for file in files for name, tensor in load_file(file).items()}

    def store(self, tensors, file="model.safetensors"):
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, self.folder / file,
                  metadata={"format": "pt"})

    def shards(self, parts, places=None, **more):
        """One shard for each dictionary of tensors, and an index; `places` overrides where it says that a tensor is."""
        for file in [*self.folder.glob("*.safetensors"), *self.folder.glob(INDEX)]:
            file.unlink()
        names = [f"model-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
        weight_map = {}
        for file, part in zip(names, parts):
            self.store(part, file)
            weight_map |= {name: file for name in part}
        for tensor, place in (places or {}).items():
            if place is None:
                del weight_map[tensor]
            else:
                weight_map[tensor] = names[place] if isinstance(place, int) else place
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map} | more
        (self.folder / INDEX).write_text(json.dumps(index))


# ---- what the two programs make of a folder ------------------------------------------------------------------------------


def theirs(folder):
    """The logits, or why there are none."""
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, local_files_only=True)
        missing = [name for name in info["missing_keys"] if "vision" not in name and "multi_modal" not in name]
        if missing:
            return f"REFUSED makes up {sorted(missing)[0]}"
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([IDS])).logits[0]
        return logits.double() if logits.isfinite().all() else "REFUSED gives NaN"
    except Exception as error:  # whatever it says, it does not load
        return refusal(error)


def ours(folder):
    """The logits, or the message."""
    ids, output = folder.parent / "ids.json", folder.parent / "ours.safetensors"
    ids.write_text(json.dumps(IDS))
    try:
        program.program("trace", "--model", folder, "--ids", ids, "--names", "lm_head", "--output", output)
    except SystemExit as refused:
        return message(refused, folder)
    return load_file(output)["lm_head"].double()


def their_text(folder):
    """What a greedy run writes after PROMPT, or why it does not."""
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        given = tokenizer(PROMPT, return_tensors="pt")
        out = model.generate(**given, max_new_tokens=8, do_sample=False)[0, given.input_ids.shape[1] :].tolist()
        ends = model.generation_config.eos_token_id
        if out and ends is not None and out[-1] in (ends if isinstance(ends, list) else [ends]):
            out.pop()
        return tokenizer.decode(out)
    except Exception as error:
        return refusal(error)


def our_text(folder):
    try:
        return program.program("generate", "--model", folder, "--prompt", PROMPT, "--max-tokens", 8).removesuffix("\n")
    except SystemExit as refused:
        return message(refused, folder)


def refusal(error):
    return f"REFUSED {type(error).__name__}: {' '.join(str(error).split())}"


def message(refused, folder):
    return "REFUSED " + str(refused).split(": error: ", 1)[-1].strip().replace(str(folder), "M")


def is_refusal(result):
    return isinstance(result, str) and result.startswith("REFUSED")


def same(a, b):
    if isinstance(a, str):
        return a == b
    return (a - b).abs().max().item() < SAME


@functools.cache
def unchanged(base, read):
    """What transformers makes of a checkpoint as it is."""
    with tempfile.TemporaryDirectory() as folder:
        return read(Case(Path(folder) / "M", base).folder)


def compare(name, make, base, read, read_ours):
    """Prints one line; whether it is as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        case = Case(Path(folder) / "M", base)
        make(case)
        want, got = read(case.folder), read_ours(case.folder)
    refused = is_refusal(want), is_refusal(got)
    if refused == (False, False):
        verdict = "agree" if same(want, got) else "DIFFER"
        line = "as before" if same(want, unchanged(base, read)) else "other than before"
        if not isinstance(want, str):
            line += f", off by {(want - got).abs().max().item():.0e}"
        elif verdict == "DIFFER":
            line += f" | theirs {want!r} | ours {got!r}"
    else:
        verdict = {(True, True): "agree", (True, False): "laxer", (False, True): "stricter"}[refused]
        cells = [result.removeprefix("REFUSED ") if is_refusal(result) else "run it" for result in (want, got)]
        line = f"theirs {cells[0][:90]} | ours {cells[1]}"
    reason = REASONS.get(name)
    if verdict in ("laxer", "stricter"):
        line += f" | why: {reason}"
    print(f"{verdict:9}{name:58} {line}", flush=True)
    return verdict == "agree" or (verdict != "DIFFER" and reason is not None)


# ---- config.json ---------------------------------------------------------------------------------------------------------


def change(config, path, value):
    """Sets `a.b` of a config, or takes it out."""
    *parents, last = path.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    if value is OUT:
        config.pop(last, None)
    else:
        config[last] = value


OUT = object()


def fields(**changes):
    """A case that sets fields; `__` stands for a dot."""
    def make(case):
        config = case.config()
        for path, value in changes.items():
            change(config, path.replace("__", ".") if not path.startswith("_") else path, value)
        case.write(config)
    return make


def text(edit):
    """A case that edits the text of config.json."""
    return lambda case: case.write(edit((case.folder / "config.json").read_text()))


def with_more(more):
    """A case whose config.json has a member more, as it stands."""
    return text(lambda old: old.replace("{", "{" + more + ",", 1))


def old_spelling(**more):
    """Without rope_parameters, with fields of the old spelling."""
    return fields(rope_parameters=OUT, **more)


SLIDING, FULL = "sliding_attention", "full_attention"
DEFAULT = {"rope_type": "default"}
LINEAR = {"rope_type": "linear", "factor": 4.0}


def rope(full=None, sliding=None, **more):
    """A rope_parameters."""
    return {FULL: full or DEFAULT | {"rope_theta": 1000.0}, SLIDING: sliding or DEFAULT | {"rope_theta": 10.0}} | more


JSON = {
    "as it is": text(lambda t: t),
    "NaN in a field that nothing reads": with_more('"attention_dropout": NaN'),
    "Infinity and -Infinity in such fields": with_more('"a": Infinity, "b": [-Infinity]'),
    "NaN as rms_norm_eps": text(lambda t: t.replace("{", '{"rms_norm_eps": NaN,', 1)),
    "1e999 where nothing reads it": with_more('"initializer_range": 1e999'),
    "1e999 as rope_theta": fields(rope_parameters=rope(DEFAULT | {"rope_theta": float("inf")})),
    "Infinity written as an object": with_more('"time_step_limit": {"__float__": "Infinity"}'),
    "eps written as an object for a float": with_more('"rms_norm_eps": {"__float__": "NaN"}'),
    "a key twice, the last wins": with_more('"sliding_window": 7'),
    "a key twice, the last is null": text(lambda t: t.rstrip().rstrip("}") + ', "sliding_window": null}'),
    "a nested key twice": text(lambda t: t.replace('"rope_type": "default"', '"rope_type": "yarn", "rope_type": "default"')),
    "a whole number of 400 digits": with_more('"x": ' + "9" * 400),
    "a whole number of 5000 digits": with_more('"x": ' + "9" * 5000),
    "a whole number beyond 64 bits as max_position_embeddings": text(
        lambda t: t.replace('"max_position_embeddings": 128', '"max_position_embeddings": 18446744073709551616')),
    "a byte order mark": text(lambda t: "\ufeff" + t),
    "UTF-16": text(lambda t: t.encode("utf-16")),
    "invalid UTF-8 in a string": text(lambda t: t.encode().replace(b"{", b'{"a": "\xff",', 1)),
    "half a surrogate pair": with_more('"a": "\\ud800"'),
    "half a surrogate pair as a key": with_more('"\\udc00": 1'),
    "a surrogate pair": with_more('"a": "\\ud83d\\ude00"'),
    "a comment": text(lambda t: "// a model\n" + t),
    "a comma at the end": text(lambda t: t.rstrip().rstrip("}").rstrip() + ",}"),
    "something after the end": text(lambda t: t + "x"),
    "white space around": text(lambda t: " \t\r\n" + t + " \n\n"),
    "a NUL at the end": text(lambda t: t + "\0"),
    "a no-break space before": text(lambda t: "\u00a0" + t),
    "a tab in a string": with_more('"a": "x\ty"'),
    "100 lists in each other": with_more('"a": ' + "[" * 100 + "]" * 100),
    "500 lists in each other": with_more('"a": ' + "[" * 500 + "]" * 500),
    "100000 lists in each other": with_more('"a": ' + "[" * 100000 + "]" * 100000),
    "a list at the top": text(lambda t: "[" + t + "]"),
    "a number that begins with 0": with_more('"a": 01'),
    "a number that begins with +": with_more('"a": +1'),
    "a number that ends with a point": with_more('"a": 1.'),
    "nan in small letters": with_more('"a": nan'),
    "True in capitals": with_more('"a": True'),
    "single quotes": with_more("'a': 1"),
    "an escape that is none": with_more('"a": "\\x41"'),
    "an escaped key": text(lambda t: t.replace('"sliding_window": 3', '"\\u0073liding_window": 5')),
    "an empty file": text(lambda t: ""),
    "no file": lambda case: (case.folder / "config.json").unlink(),
}

MODEL_TYPE = {
    "model_type left out, architectures there": fields(model_type=OUT),
    "model_type null": fields(model_type=None),
    "model_type of another model": fields(model_type="llama"),
    "model_type of no model": fields(model_type="gemma3_txt"),
    "model_type in capitals": fields(model_type="Gemma3_Text"),
    "architectures left out": fields(architectures=OUT),
    "architectures null": fields(architectures=None),
    "architectures empty": fields(architectures=[]),
    "architectures of another model": fields(architectures=["LlamaForCausalLM"]),
    "architectures of several": fields(architectures=["Gemma3Model", "Gemma3ForCausalLM"]),
    "architectures says the base model": fields(architectures=["Gemma3TextModel"]),
    "architectures says multimodal, model_type text": fields(architectures=["Gemma3ForConditionalGeneration"]),
    "a text_config in a flat config": fields(text_config={"sliding_window": 1}),
    "configuration_files": fields(configuration_files=["config.4.0.0.json"]),
    "per_layer_config": fields(per_layer_config={"0": {"sliding_window": 1}}),
    "per_layer_config null": fields(per_layer_config=None),
}

NUMBERS = {}
for field, good in {"vocab_size": 101, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 5,
                    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "query_pre_attn_scalar": 6,
                    "sliding_window": 3, "max_position_embeddings": 128}.items():
    for value in (float(good), str(good), True, None, -good, 0, OUT):
        said = "left out" if value is OUT else json.dumps(value)
        NUMBERS[f"{field} {said}"] = fields(**{field: value})
NUMBERS |= {f"rms_norm_eps {json.dumps(value)}": fields(rms_norm_eps=value) for value in (1, "1e-6", True, None, 0.0, 1e-3, -1e-6)}
NUMBERS |= {
    "sliding_window null, all layers full": fields(sliding_window=None, layer_types=[FULL] * 5),
    "sliding_window 0, all layers full": fields(sliding_window=0, layer_types=[FULL] * 5),
    "num_key_value_heads not a divisor": fields(num_key_value_heads=3),
    "hidden_size not a multiple of the heads": fields(num_attention_heads=5, num_key_value_heads=5),
}

LAYERS = {
    "layer_types null": fields(layer_types=None),
    "layer_types left out": fields(layer_types=OUT),
    "layer_types empty": fields(layer_types=[]),
    "layer_types too short": fields(layer_types=[FULL] * 4),
    "layer_types a string": fields(layer_types=FULL),
    "layer_types of numbers": fields(layer_types=[1] * 5),
    "layer_types all sliding": fields(layer_types=[SLIDING] * 5),
    "layer_types says attention": fields(layer_types=["attention", SLIDING, "attention", SLIDING, SLIDING]),
    "layer_types all attention": fields(layer_types=["attention"] * 5),
    "layer_types says chunked_attention": fields(layer_types=["chunked_attention"] + [FULL] * 4),
    "layer_types of no kind": fields(layer_types=["global"] * 5),
    "sliding_window_pattern beside layer_types": fields(sliding_window_pattern=1),
    **{f"sliding_window_pattern {json.dumps(value)}": fields(layer_types=OUT, sliding_window_pattern=value)
       for value in (1, 2, 3, 0, -2, 2.0, 2.5, "2", True, None)},
    "_sliding_window_pattern 2": fields(layer_types=OUT, _sliding_window_pattern=2),
    "both patterns": fields(layer_types=OUT, _sliding_window_pattern=2, sliding_window_pattern=3),
}

ROPE = {
    "rope_parameters left out": fields(rope_parameters=OUT),
    "rope_parameters null": fields(rope_parameters=None),
    "rope_parameters empty": fields(rope_parameters={}),
    "rope_parameters a list": fields(rope_parameters=[]),
    "rope_parameters flat": fields(rope_parameters={"rope_type": "default", "rope_theta": 77.0}),
    "rope_parameters flat, linear": fields(rope_parameters=LINEAR | {"rope_theta": 77.0}),
    "shared keys beside nested rope_parameters": fields(rope_parameters=rope(rope_theta=77.0, rope_type="default")),
    "shared factor beside nested rope_parameters": fields(rope_parameters=rope(rope_type="linear", factor=8.0)),
    "another kind beside nested rope_parameters": fields(rope_parameters=rope(chunked_attention={"rope_type": "yarn"})),
    "only full in rope_parameters": fields(rope_parameters={FULL: DEFAULT | {"rope_theta": 77.0}}),
    "only sliding in rope_parameters": fields(rope_parameters={SLIDING: DEFAULT | {"rope_theta": 77.0}}),
    "full null in rope_parameters": fields(rope_parameters={FULL: None, SLIDING: DEFAULT}),
    "full a number in rope_parameters": fields(rope_parameters={FULL: 8, SLIDING: DEFAULT}),
    "theta left out in rope_parameters, rope_theta beside": fields(rope_parameters=rope(DEFAULT), rope_theta=77.0),
    "theta in both": fields(rope_theta=77.0, rope_local_base_freq=88.0),
    "theta null in rope_parameters": fields(rope_parameters=rope(DEFAULT | {"rope_theta": None}), rope_theta=77.0),
    "theta a string in rope_parameters": fields(rope_parameters=rope(DEFAULT | {"rope_theta": "77"})),
    "theta a whole number in rope_parameters": fields(rope_parameters=rope(DEFAULT | {"rope_theta": 77})),
    "theta true in rope_parameters": fields(rope_parameters=rope(DEFAULT | {"rope_theta": True})),
    "theta 0 in rope_parameters": fields(rope_parameters=rope(DEFAULT | {"rope_theta": 0})),
    "theta below 1 in rope_parameters": fields(rope_parameters=rope(DEFAULT | {"rope_theta": 0.5})),
    "type left out in rope_parameters": fields(rope_parameters=rope({"rope_theta": 77.0})),
    "type and factor left out, factor there": fields(rope_parameters=rope({"rope_theta": 77.0, "factor": 4.0})),
    "type null in rope_parameters": fields(rope_parameters=rope({"rope_type": None, "rope_theta": 77.0})),
    "type under its old name": fields(rope_parameters=rope({"type": "linear", "factor": 4.0, "rope_theta": 77.0})),
    "type under both names": fields(rope_parameters=rope(DEFAULT | {"type": "linear", "factor": 4.0, "rope_theta": 77.0})),
    "linear": fields(rope_parameters=rope(LINEAR)),
    "linear on the sliding layers": fields(rope_parameters=rope(sliding=LINEAR | {"rope_theta": 10.0})),
    "linear without factor": fields(rope_parameters=rope({"rope_type": "linear"})),
    "linear with factor null": fields(rope_parameters=rope({"rope_type": "linear", "factor": None})),
    "linear with factor a string": fields(rope_parameters=rope({"rope_type": "linear", "factor": "4"})),
    "linear with factor a whole number": fields(rope_parameters=rope({"rope_type": "linear", "factor": 4})),
    "linear with factor true": fields(rope_parameters=rope({"rope_type": "linear", "factor": True})),
    "linear with factor 0.5": fields(rope_parameters=rope({"rope_type": "linear", "factor": 0.5})),
    "linear with factor 0": fields(rope_parameters=rope({"rope_type": "linear", "factor": 0})),
    "linear with keys it does not know": fields(rope_parameters=rope(LINEAR | {"beta_fast": 32})),
    "linear with half of the head": fields(rope_parameters=rope(LINEAR | {"partial_rotary_factor": 0.34})),
    "linear with partial_rotary_factor 1": fields(rope_parameters=rope(LINEAR | {"partial_rotary_factor": 1.0})),
    "linear with partial_rotary_factor beside": fields(rope_parameters=rope(LINEAR), partial_rotary_factor=0.34),
    "default with half of the head": fields(rope_parameters=rope(DEFAULT | {"partial_rotary_factor": 0.34})),
    "default with a factor": fields(rope_parameters=rope(DEFAULT | {"factor": 4.0})),
    "yarn": fields(rope_parameters=rope({"rope_type": "yarn", "factor": 4.0})),
    "dynamic": fields(rope_parameters=rope({"rope_type": "dynamic", "factor": 4.0})),
    "llama3": fields(rope_parameters=rope({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0})),
    "a type that is none": fields(rope_parameters=rope({"rope_type": "lineal", "factor": 4.0})),
    "yarn where no layer is full": fields(rope_parameters=rope({"rope_type": "yarn", "factor": 4.0}), layer_types=[SLIDING] * 5),
    "a theta that is none where no layer slides": fields(rope_parameters=rope(sliding={"rope_theta": "x"}), layer_types=[FULL] * 5),
    "only full, and all layers are": fields(rope_parameters={FULL: LINEAR}, layer_types=[FULL] * 5),
    "rope_theta and rope_local_base_freq": old_spelling(rope_theta=77.0, rope_local_base_freq=88.0),
    "rope_theta null": old_spelling(rope_theta=None),
    "rope_local_base_freq null": old_spelling(rope_local_base_freq=None),
    "rope_theta a string": old_spelling(rope_theta="77"),
    "rope_scaling": old_spelling(rope_theta=77.0, rope_scaling=LINEAR),
    "rope_scaling null": old_spelling(rope_theta=77.0, rope_scaling=None),
    "rope_scaling empty": old_spelling(rope_theta=77.0, rope_scaling={}),
    "rope_scaling a number": old_spelling(rope_theta=77.0, rope_scaling=8),
    "rope_scaling with type under its old name": old_spelling(rope_theta=77.0, rope_scaling={"type": "linear", "factor": 4.0}),
    "rope_scaling without type": old_spelling(rope_theta=77.0, rope_scaling={"factor": 4.0}),
    "rope_scaling with its own theta": old_spelling(rope_theta=77.0, rope_scaling=LINEAR | {"rope_theta": 55.0}),
    "rope_scaling over rope_parameters": fields(rope_scaling=LINEAR),
    "rope_scaling over rope_parameters without full": fields(rope_parameters={SLIDING: DEFAULT}, rope_scaling=LINEAR),
    "rope_scaling with old type over rope_parameters without one": fields(
        rope_parameters={FULL: {"rope_theta": 77.0}}, rope_scaling={"type": "linear", "factor": 4.0}),
    "rope_scaling nested like rope_parameters": old_spelling(rope_scaling={FULL: LINEAR}),
}

OPTIONS = {
    **{f"hidden_activation {json.dumps(value)}": fields(hidden_activation=value)
       for value in ("gelu_pytorch_tanh", "silu", "gelu", None, 1)},
    "hidden_act silu": fields(hidden_act="silu"),
    **{f"{field} {json.dumps(value)}": fields(**{field: value})
       for field in ("attention_bias", "use_bidirectional_attention", "tie_word_embeddings")
       for value in (True, False, None, 0, 1, "false")},
    **{f"{field} {json.dumps(value)}": fields(**{field: value})
       for field in ("attn_logit_softcapping", "final_logit_softcapping") for value in (30.0, None, 30, 0.0)},
    "quantization_config null": fields(quantization_config=None),
    "quantization_config empty": fields(quantization_config={}),
    "quantization_config of bitsandbytes": fields(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "quantization_config of no method": fields(quantization_config={"quant_method": "none"}),
    "torch_dtype of no type": fields(dtype=OUT, torch_dtype="float99"),
    "torch_dtype float16": fields(dtype=OUT, torch_dtype="float16"),
    "pad_token_id beyond the vocabulary": fields(pad_token_id=1000),
    "pad_token_id -1": fields(pad_token_id=-1),
    **{f"{field} {json.dumps(value)}": fields(**{field: value})
       for field in ("eos_token_id", "bos_token_id") for value in (1000, -1, None, [1, 3], [], 1.0, "1", True, {})},
}

NESTED = {
    "as it is": text(lambda t: t),
    "text_config left out": fields(text_config=OUT),
    "text_config null": fields(text_config=None),
    "text_config a list": fields(text_config=[]),
    "a model_type of another model in text_config": fields(text_config__model_type="llama"),
    "no model_type in text_config": fields(text_config__model_type=OUT),
    "architectures says text, model_type multimodal": fields(architectures=["Gemma3ForCausalLM"]),
    "vision_config left out": fields(vision_config=OUT),
    **{f"{field} {json.dumps(value)} outside": fields(**{field: value}) for field, value in {
        "sliding_window": 1, "rms_norm_eps": 0.5, "vocab_size": 5, "rope_theta": 77.0, "rope_local_base_freq": 77.0,
        "rope_scaling": LINEAR, "rope_parameters": rope(LINEAR), "hidden_activation": "silu", "final_logit_softcapping": 1.0,
        "attention_bias": True, "use_bidirectional_attention": True, "layer_types": [FULL] * 7, "head_dim": 2}.items()},
    "shared keys beside nested rope_parameters": fields(text_config__rope_parameters__rope_theta=77.0),
    **{f"tie_word_embeddings {json.dumps(outer)} outside, {json.dumps(inner)} inside": fields(
        **({} if outer == "-" else {"tie_word_embeddings": outer}),
        **({} if inner == "-" else {"text_config__tie_word_embeddings": inner}))
       for outer in ("-", True, False, None) for inner in ("-", True, False)},
    "sliding_window null inside": fields(text_config__sliding_window=None),
    "final_logit_softcapping inside": fields(text_config__final_logit_softcapping=1.0),
    "attn_logit_softcapping inside": fields(text_config__attn_logit_softcapping=1.0),
    "quantization_config inside": fields(text_config__quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "per_layer_config inside": fields(text_config__per_layer_config={"0": {"sliding_window": 1}}),
    "hidden_size a float inside": fields(text_config__hidden_size=16.0),
    "bos_token_id null inside": fields(text_config__bos_token_id=None),
}


# ---- weights -------------------------------------------------------------------------------------------------------------

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def named(rename):
    """A case whose tensors have other names; a name of None is left out."""
    def make(case):
        tensors = {rename(name): tensor for name, tensor in case.tensors().items()}
        tensors.pop(None, None)
        case.store(tensors)
    return make


def stored(edit, base_shards=False):
    """A case whose tensors are edited in a dictionary."""
    def make(case):
        tensors = case.tensors()
        case.store(edit(tensors) or tensors)
    return make


def more_tensors(**tensors):
    return stored(lambda old: old | {name.replace("__", "."): tensor for name, tensor in tensors.items()})


def move(tensors, old, new):
    tensors[new] = tensors.pop(old)


def bare(name):
    return name.removeprefix("model.")


PREFIXES = {
    "no prefix": named(bare),
    "model.model.": named(lambda n: f"model.{n}"),
    "language_model.model.": named(lambda n: f"language_model.{n}"),
    "model.language_model.": named(lambda n: f"model.language_model.{bare(n)}"),
    "language_model.": named(lambda n: f"language_model.{bare(n)}"),
    "base_model.model.": named(lambda n: f"base_model.model.{n}"),
    "transformer.": named(lambda n: f"transformer.{bare(n)}"),
    "module.": named(lambda n: f"module.{n}"),
    "_orig_mod.": named(lambda n: f"_orig_mod.{n}"),
    "half of them without a prefix": named(lambda n: bare(n) if "mlp" in n else n),
    "gamma for the norms' weight": named(lambda n: n.replace("norm.weight", "norm.gamma")),
    "both spellings, the same": stored(lambda t: t | {bare(n): x for n, x in t.items()}),
    "both spellings, of one tensor another": stored(lambda t: t | {"norm.weight": t["model.norm.weight"] + 1}),
}

MULTIMODAL_PREFIXES = {
    "language_model.model. (as stored)": lambda case: None,
    "model.language_model.": named(lambda n: n.replace("language_model.model.", "model.language_model.")
                                   if n.startswith("language_model") else f"model.{n}"),
    "language_model.": named(lambda n: n.replace("language_model.model.", "language_model.")),
    "model.": named(lambda n: n.replace("language_model.model.", "model.")),
    "model.language_model.model.": named(lambda n: f"model.{n}"),
    "no prefix": named(lambda n: n.replace("language_model.model.", "")),
    "base_model.model.": named(lambda n: f"base_model.model.{n}"),
    "without the vision part": named(lambda n: n if n.startswith("language_model") else None),
    "an unused I64 buffer in the vision part": more_tensors(
        vision_tower__vision_model__embeddings__position_ids=torch.arange(4)[None]),
    "a vision tensor in I8": stored(lambda t: t | {n: x.to(torch.int8) for n, x in t.items() if "multi_modal" in n}),
    "language_model.lm_head alone": stored(
        lambda t: move(t, "language_model.model.embed_tokens.weight", "language_model.lm_head.weight")),
    "language_model.lm_head beside, another": stored(
        lambda t: t | {"language_model.lm_head.weight": t["language_model.model.embed_tokens.weight"] + 0.5}),
    "lm_head beside, another": stored(lambda t: t | {HEAD: t["language_model.model.embed_tokens.weight"] + 0.5}),
    "model.lm_head beside, another": stored(lambda t: t | {"model.lm_head.weight": t["language_model.model.embed_tokens.weight"] + 0.5}),
}

TYING = {
    "tied, only lm_head": stored(lambda t: move(t, EMBED, HEAD)),
    "tied, model.lm_head": stored(lambda t: move(t, EMBED, "model.lm_head.weight")),
    "tied, both the same": stored(lambda t: t | {HEAD: t[EMBED]}),
    "tied, both, and different": stored(lambda t: t | {HEAD: t[EMBED] + 0.5}),
    "tied, both, the head of another shape": stored(lambda t: t | {HEAD: t[EMBED][:50]}),
    "tied, neither": stored(lambda t: {name: x for name, x in t.items() if name != EMBED}),
    "untied, only the embedding": lambda case: (fields(tie_word_embeddings=False)(case)),
    "untied, only lm_head": lambda case: (fields(tie_word_embeddings=False)(case), stored(lambda t: move(t, EMBED, HEAD))(case)),
    "untied, both": lambda case: (fields(tie_word_embeddings=False)(case), stored(lambda t: t | {HEAD: t[EMBED] + 0.5})(case)),
}

UNUSED = {
    "rotary inv_freq": more_tensors(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(3)),
    "rotary inv_freq of the model": more_tensors(model__rotary_emb__inv_freq=torch.ones(3)),
    "position_ids in I64": more_tensors(position_ids=torch.arange(9)[None]),
    "a mask in BOOL": more_tensors(model__layers__1__self_attn__bias=torch.ones(2, 2, dtype=torch.bool)),
    "a tensor in U8": more_tensors(model__layers__1__mlp__up_proj__qweight=torch.ones(8, dtype=torch.uint8)),
    "a tensor in F8": more_tensors(extra=torch.ones(8).to(torch.float8_e4m3fn)),
    "a tensor of no numbers": more_tensors(extra=torch.ones(0, 3)),
    "a layer more than config.json says": more_tensors(model__layers__5__mlp__up_proj__weight=torch.ones(40, 24)),
    "a bias of a linear map": more_tensors(model__layers__0__mlp__up_proj__bias=torch.ones(40)),
    "a bias of q_proj": more_tensors(model__layers__0__self_attn__q_proj__bias=torch.ones(24)),
    "a NaN in a tensor that is not used": more_tensors(extra=torch.tensor([float("nan")])),
    "a LoRA beside": more_tensors(model__layers__0__mlp__up_proj__lora_A__weight=torch.ones(2, 24)),
    "a score head": more_tensors(score__weight=torch.ones(2, 24)),
    "a weight in I32": stored(lambda t: t | {"model.norm.weight": t["model.norm.weight"].to(torch.int32)}),
    "a weight in F8": stored(lambda t: t | {"model.norm.weight": t["model.norm.weight"].to(torch.float8_e4m3fn)}),
    "a weight of another shape": stored(lambda t: t | {"model.norm.weight": torch.ones(23)}),
    "a weight of the same size in another shape": stored(lambda t: t | {"model.norm.weight": torch.ones(1, 24)}),
    "a weight left out": stored(lambda t: {name: x for name, x in t.items() if name != "model.norm.weight"}),
}


def halves(tensors):
    names = sorted(tensors)
    first = {name: tensors[name] for name in names[::2]}
    return first, {name: tensors[name] for name in names[1::2]}


def sharded(edit=lambda first, second: None, **options):
    """A case of two shards, which `edit` may change; it may give `places`."""
    def make(case):
        first, second = halves(case.tensors())
        places = edit(first, second)
        case.shards([first, second], places, **options)
    return make


IN_FIRST, IN_SECOND = sorted(load_file(CHECKPOINTS / "window-3/model.safetensors"))[:2]


def stale(place, named):
    """A copy of a tensor with other numbers in a shard; the index names one of both."""
    def edit(first, second):
        shards = [first, second]
        source = IN_FIRST if place == 1 else IN_SECOND
        shards[place][source] = shards[1 - place][source] + 1
        return {source: named}
    return edit


def beside(case):
    tensors = case.tensors()
    first, second = halves({name: tensor + 1 for name, tensor in tensors.items()})
    case.shards([first, second])
    case.store(tensors)


INDEXES = {
    "two shards": sharded(),
    "the index names b, a has a stale copy": sharded(stale(0, 1)),
    "the index names a, b has a stale copy": sharded(stale(1, 0)),
    "the index names b, which has the stale copy": sharded(stale(1, 1)),
    "a tensor that the index does not name": sharded(lambda a, b: {IN_FIRST: None}),
    "a tensor that the index places in the wrong shard": sharded(lambda a, b: {IN_FIRST: 1}),
    "a tensor that the index names and no shard has": sharded(lambda a, b: {"extra": 0}),
    "a needed tensor that the index names and no shard has": sharded(lambda a, b: a.pop(IN_FIRST) is None or {IN_FIRST: 0}),
    "a shard that is not there": sharded(lambda a, b: {"extra": "model-00003.safetensors"}),
    "a shard in a folder": sharded(lambda a, b: {"extra": "more/model.safetensors"}),
    "a wrong total_size": sharded(metadata={"total_size": "many"}),
    "no metadata": sharded(metadata=None),
    "an index beside a single file": beside,
    "an index without weight_map": sharded(weight_map=None),
    "a single file under another name": lambda case: (case.folder / "model.safetensors").rename(case.folder / "weights.safetensors"),
    "one shard and no index": lambda case: (case.folder / "model.safetensors").rename(
        case.folder / "model-00001-of-00001.safetensors"),
    "transformers_weights names the file": lambda case: (
        (case.folder / "model.safetensors").rename(case.folder / "weights.safetensors"),
        fields(transformers_weights="weights.safetensors")(case)),
    "transformers_weights names an index": lambda case: (
        sharded()(case), (case.folder / INDEX).rename(case.folder / "other.safetensors.index.json"),
        fields(transformers_weights="other.safetensors.index.json")(case)),
    "transformers_weights names no safetensors": fields(transformers_weights="weights.bin"),
    "transformers_weights names a file that is not there": fields(transformers_weights="weights.safetensors"),
    "transformers_weights leads outside": fields(transformers_weights="../weights.safetensors"),
    "a variant only": lambda case: (case.folder / "model.safetensors").rename(case.folder / "model.fp16.safetensors"),
    "no weights": lambda case: (case.folder / "model.safetensors").unlink(),
}

# ---- where a text ends ---------------------------------------------------------------------------------------------------


def generation(content):
    """A case with this generation_config.json, or none."""
    def make(case):
        file = case.folder / "generation_config.json"
        file.unlink()
        if content is not None:
            file.write_text(content)
    return make


def both(*makes):
    return lambda case: [make(case) for make in makes]


# The model writes 709, 277, 656, 741.
ENDS = {
    "as it is": lambda case: None,
    **{f"generation_config.json {content!r}": generation(content) for content in (
        '{"eos_token_id": 656}', '{"eos_token_id": [5, 277]}', "{}", '{"eos_token_id": null}', '{"eos_token_id": 100000}',
        '{"eos_token_id": -1}', '{"eos_token_id": "656"}', '{"eos_token_id": [656, "5"]}', "[656]", "{", "",
        '\ufeff{"eos_token_id": 656}', '{"eos_token_id": 656, "temperature": NaN}')},
    **{f"none, config.json {json.dumps(value)}": both(generation(None), fields(eos_token_id=value))
       for value in (656, [5, 277], None, 100000, [])},
    "none, config.json says nothing": both(generation(None), fields(eos_token_id=OUT)),
    "broken, config.json 656": both(generation("{"), fields(eos_token_id=656)),
    "empty, config.json 656": both(generation("{}"), fields(eos_token_id=656)),
    "5, config.json 656": both(generation('{"eos_token_id": 5}'), fields(eos_token_id=656)),
}

BOUNDS = "numbers are bounded, so that nothing computed from them overflows"
SPELLINGS = "every spelling is taken in both kinds of model"
NOT_COMPUTED = "is not computed here"
NOT_READ = "nothing is computed with it"
REASONS = {
    "1e999 as rope_theta": BOUNDS,
    "a whole number beyond 64 bits as max_position_embeddings": BOUNDS,
    "query_pre_attn_scalar -6": BOUNDS,
    "max_position_embeddings -128": BOUNDS,
    "max_position_embeddings 0": BOUNDS,
    "rms_norm_eps -1e-06": BOUNDS,
    "sliding_window 0, all layers full": BOUNDS,
    "yarn": NOT_COMPUTED,
    "dynamic": NOT_COMPUTED,
    "llama3": NOT_COMPUTED,
    'hidden_activation "silu"': NOT_COMPUTED,
    'hidden_activation "gelu"': NOT_COMPUTED,
    "use_bidirectional_attention true": NOT_COMPUTED,
    "final_logit_softcapping 30.0": NOT_COMPUTED,
    "final_logit_softcapping 0.0": NOT_COMPUTED,
    "quantization_config of no method": NOT_COMPUTED,
    "attn_logit_softcapping 30": NOT_READ,
    "pad_token_id beyond the vocabulary": NOT_READ,
    "vision_config left out": NOT_READ,
    "no metadata": NOT_READ,
    "language_model.model.": SPELLINGS,
    "model.language_model.": SPELLINGS,
    "language_model.": SPELLINGS,
    "model.": SPELLINGS,
    "no prefix": SPELLINGS,
    "a layer more than config.json says": "a shorter model would run without a word",
    "a weight in I32": NOT_COMPUTED,
    "a weight in F8": NOT_COMPUTED,
}

LOGITS, TEXTS = (theirs, ours), (their_text, our_text)
FLAT, NESTING = "checkpoints/window-3", "checkpoints/multimodal"
GROUPS = [
    ("JSON as Python reads it", FLAT, JSON, LOGITS),
    ("model_type and architectures", FLAT, MODEL_TYPE, LOGITS),
    ("numbers", FLAT, NUMBERS, LOGITS),
    ("kinds of layers", FLAT, LAYERS, LOGITS),
    ("rotary embedding", FLAT, ROPE, LOGITS),
    ("options", FLAT, OPTIONS, LOGITS),
    ("nested", NESTING, NESTED, LOGITS),
    ("names of tensors", FLAT, PREFIXES, LOGITS),
    ("names of tensors, multimodal", NESTING, MULTIMODAL_PREFIXES, LOGITS),
    ("tying", FLAT, TYING, LOGITS),
    ("tensors that are not used, or should be", FLAT, UNUSED, LOGITS),
    ("files of weights", FLAT, INDEXES, LOGITS),
    ("where a text ends", "tiny", ENDS, TEXTS),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default=program.PROGRAM, type=Path)
    parser.add_argument("--only", default="", help="groups whose name begins so")
    arguments = parser.parse_args()
    program.PROGRAM = arguments.program
    warnings.simplefilter("ignore")
    logging.disable()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"{datetime.date.today()}, transformers {transformers.__version__}, huggingface_hub {huggingface_hub.__version__}, "
          f"torch {torch.__version__}, Python {sys.version.split()[0]}, {program.program('--version').strip()}")
    wrong = []
    for group, base, cases, readers in GROUPS:
        if group.startswith(arguments.only):
            print(f"\n{group} ({base}, {len(cases)} cases)")
            wrong += [f"{group}: {name}" for name, make in cases.items() if not compare(name, make, base, *readers)]
    print(f"\n{len(wrong)} are not as they should be" + "".join(f"\n  {line}" for line in wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
