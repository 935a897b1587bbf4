#!/usr/bin/env python3
"""Ask llama.cpp whether exported patches do there what they do here.

    pip install llama-cpp-python gguf numpy        (in an environment of its own; it compiles llama.cpp)
    cargo build --release && python3 reference/check_llama_cpp.py > reference/check_llama_cpp.txt

For each of the paper's prompts the program solves a span: the prompt's last token and its greedy answer, <bos> kept, natural
positions, the context gone. llama.cpp gets the adapter, <bos> and that token.

The model, a Hugging Face folder, is written as GGUF in F32 and in BF16 to a temporary folder. For each
prompt, greedy tokens of the full prompt without the adapter are the target; printed is how many of the
first tokens are the same for the reduced prompt with the adapter, and, as the control, without it. The
end of a text is no reason to stop. Beside it stands the largest difference of the first token's logits. With F32
weights the caches are F32 too; with BF16 weights they are llama.cpp's F16.

Run by hand: nothing in the tests needs it.
"""

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import math
import platform
import struct
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from gguf_to_hf import LAYER_NAMES, OUTER_NAMES
from program import PROMPTS, ROOT, solve

# Hugging Face's name of a tensor, less the layer, to GGUF's.
LAYER_NAMES = {hf: name for name, hf in LAYER_NAMES["gemma3"].items()}
OUTER_NAMES = {hf: name for name, hf in OUTER_NAMES.items()}

SIZES = {"BF16": 2, "F16": 2, "F32": 4}
PREFIXES = ("language_model.", "model.language_model.")


class Failure(Exception):
    """Something that the user has to read; ends the script with exit status 1."""


# ---- the model as GGUF ------------------------------------------------------------------------------


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


def to_bf16(numbers):
    """f32 as the bytes of bf16, ties to even: rows of twice as many bytes."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").view(np.uint8)


def gguf_name(name):
    """GGUF's name for a tensor of Hugging Face."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            name = "model." + name.removeprefix(prefix).removeprefix("model.")
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    if name == "model.lm_head.weight":
        return OUTER_NAMES["lm_head.weight"]
    try:
        _, _, layer, module = name.split(".", 3)
        return f"blk.{layer}.{LAYER_NAMES[module.removesuffix('.weight')]}.weight"
    except (ValueError, KeyError):
        raise Failure(f"no GGUF name for the tensor {name}") from None


def write_metadata(writer, config):
    """What llama.cpp has to know of the model. No tokenizer: prompts are given as ids."""
    writer.add_context_length(config.get("max_position_embeddings", 131072))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config.get("num_attention_heads", 8))
    writer.add_head_count_kv(config.get("num_key_value_heads", 4))
    writer.add_key_length(config.get("head_dim", 256))
    writer.add_value_length(config.get("head_dim", 256))
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_sliding_window(config.get("sliding_window", 4096))
    kinds = config.get("layer_types") or []
    if "full_attention" in kinds:
        period = kinds.index("full_attention") + 1
        writer.add_uint32("gemma3.attention.sliding_window_pattern", period)
    ropes = config.get("rope_parameters") or {}
    full = ropes.get("full_attention", {})
    local = ropes.get("sliding_attention", {})
    writer.add_rope_freq_base(full.get("rope_theta", config.get("rope_theta", 1e6)))
    writer.add_float32(
        "gemma3.rope.freq_base_swa", local.get("rope_theta", config.get("rope_local_base_freq", 1e4))
    )
    scaling = full if "factor" in full else config.get("rope_scaling")
    if scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def write_base(folder, path, bf16):
    """Writes the checkpoint in `folder` as the GGUF file `path`, one tensor in memory at a time."""
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    writer = gguf.GGUFWriter(path, "gemma3")
    write_metadata(writer, config)
    tensors = list(open_tensors(folder))
    for name, _, shape, _, _ in tensors:
        raw = bf16 and len(shape) > 1
        kind = gguf.GGMLQuantizationType.BF16 if raw else gguf.GGMLQuantizationType.F32
        count = math.prod(shape)
        writer.add_tensor_info(
            gguf_name(name), shape, np.dtype(np.float32), count * (2 if raw else 4), raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, dtype, shape, source, place in tensors:
        numbers = read_f32(dtype, shape, source, place)
        if name.endswith("norm.weight"):
            numbers = 1 + numbers  # GGUF stores the scale itself.
        writer.write_tensor_data(to_bf16(numbers) if bf16 and len(shape) > 1 else numbers)
    writer.close()
    return config


# ---- running it -------------------------------------------------------------------------------------


class Llama:
    """A model of llama.cpp, by its low-level interface."""

    def __init__(self, path, vocab, exact, threads):
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self.model:
            raise Failure(f"llama.cpp does not load {path}")
        self.vocab, self.exact, self.threads = vocab, exact, threads

    def adapter(self, path):
        """Loads an adapter."""
        adapter = llama_cpp.llama_adapter_lora_init(self.model, str(path).encode())
        if not adapter:
            raise Failure(f"llama.cpp does not load the adapter {path}")
        return adapter

    def greedy(self, ids, count, adapter=None):
        """The next `count` tokens, each the one of the largest logit, and the logits of the first."""
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = len(ids) + count
        options.n_threads = options.n_threads_batch = self.threads
        if self.exact:
            options.type_k = options.type_v = 0  # GGML_TYPE_F32
            options.flash_attn_type = 0  # off
        context = llama_cpp.llama_init_from_model(self.model, options)
        if not context:
            raise Failure("llama.cpp makes no context")
        try:
            if adapter:
                self.apply(context, adapter)
            tokens, first = [], None
            step = list(ids)
            while len(tokens) < count:
                logits = self.decode(context, step)
                first = logits if first is None else first
                tokens.append(int(logits.argmax()))
                step = tokens[-1:]
            return tokens, first
        finally:
            llama_cpp.llama_free(context)

    def apply(self, context, adapter):
        """Adds the adapter to a context."""
        if hasattr(llama_cpp, "llama_set_adapters_lora"):  # Its newer name.
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
            scales = (ctypes.c_float * 1)(1.0)
            status = llama_cpp.llama_set_adapters_lora(context, adapters, 1, scales)
        else:
            status = llama_cpp.llama_set_adapter_lora(context, adapter, 1.0)
        if status != 0:
            raise Failure("llama.cpp does not apply the adapter")

    def decode(self, context, ids):
        """The logits after `ids`."""
        array = (llama_cpp.llama_token * len(ids))(*ids)
        status = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(ids)))
        if status != 0:
            raise Failure(f"llama_decode gives {status}")
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return np.ctypeslib.as_array(logits, (self.vocab,)).copy()


def equal_first(tokens, target):
    """How many of the first tokens are the same."""
    same = [a == b for a, b in zip(tokens, target)]
    return same.index(False) if False in same else len(same)


def run_cases(llama, cases, folder, count):
    """Prints a line for each case."""
    print(f"{'case':>4} {'full':>6} {'reduced':>8} {'patched':>8} {'control':>8}   max |Δlogit|: patched, control")
    sums = [0, 0]
    for number, case in enumerate(cases):
        adapter = llama.adapter(folder / case["adapter"])
        target, wanted = llama.greedy(case["full"], count)
        results = [llama.greedy(case["reduced"], count, a) for a in (adapter, None)]
        equal = [equal_first(tokens, target) for tokens, _ in results]
        far = [float(np.abs(first - wanted).max()) for _, first in results]
        sums = [a + b for a, b in zip(sums, equal)]
        print(
            f"{number:>4} {len(case['full']):>6} {len(case['reduced']):>8} {equal[0]:>8} {equal[1]:>8}"
            f"   {far[0]:.3g}, {far[1]:.3g}",
            flush=True,
        )
    print(f"{sums[0]} of {count * len(cases)} tokens equal with the adapter, {sums[1]} without")


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def log(level, text, _):
    """llama.cpp's errors, and none of its other words."""
    if level == 4:
        sys.stderr.write(text.decode(errors="replace"))


def solve_case(arguments, text, path):
    """The full and the reduced prompt, and the adapter of the span."""
    adapter = path.with_suffix(".gguf")
    options = ("--keep", "0", "--positions", "natural", "--answer-tokens", arguments.tokens, "--export", "gguf", adapter)
    saved = solve(arguments.model, text, path.with_suffix(".patch"), *options)
    answer = saved["split"]["answer"]
    return {
        "full": saved["split"]["tokens"][:-answer],
        "reduced": saved["reduced_tokens"][:-answer],
        "adapter": adapter,
    }


def main():
    parser = argparse.ArgumentParser(description="Compare exported patches with the full prompt in llama.cpp.")
    parser.add_argument("--model", type=Path, default=ROOT / "models/gemma-3-270m", help="Hugging Face folder")
    parser.add_argument("--tokens", type=int, default=24, help="greedy tokens to compare")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("llama-cpp-python", "gguf", "numpy")]
    print(datetime.date.today(), f"Python {platform.python_version()}", *versions, sep=", ")
    print(llama_cpp.llama_print_system_info().decode().strip())
    try:
        with tempfile.TemporaryDirectory() as work:
            cases = [solve_case(arguments, text, Path(work) / str(i)) for i, text in enumerate(PROMPTS)]
            for bf16 in (False, True):
                path = Path(work) / "base.gguf"
                config = write_base(arguments.model, path, bf16)
                print(f"\n{arguments.model.name} in {'BF16' if bf16 else 'F32'}")
                llama = Llama(path, config["vocab_size"], not bf16, arguments.threads)
                run_cases(llama, cases, Path(work), arguments.tokens)
                llama_cpp.llama_model_free(llama.model)
    except (Failure, OSError) as error:
        sys.exit(f"check_llama_cpp.py: {error}")


if __name__ == "__main__":
    main()
