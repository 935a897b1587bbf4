#!/usr/bin/env python3
"""Ask llama.cpp whether exported patches do there what they do here.

    pip install llama-cpp-python numpy        (in an environment of its own; it compiles llama.cpp)
    cargo build --release && python3 reference/check_llama_cpp.py > reference/check_llama_cpp.txt

For each of the paper's prompts the program solves a span: the prompt's last token and its greedy answer, the first token (<bos>,
where the model has one) kept, or what --keep says, natural positions, the rest gone. llama.cpp gets the adapter and the tokens left.

The model, a Hugging Face folder, is written as GGUF in F32 and in BF16 to a temporary folder (`convert`). For each prompt, the
greedy tokens of the full prompt without the adapter are the target, of the answer and the token after it. Printed is how many of
the first ones are the same in the program itself (which says that the model was written right), in llama.cpp for the reduced
prompt with the adapter, and there without it, as the control. Beside it stands the largest difference of the first token's
logits and, where the text with the adapter parts from the target, by how much the target's token led there. With F32 weights the
caches are F32 too; with BF16 weights they are llama.cpp's F16. Models named on the command line are the only ones.

Run by hand: nothing in the tests needs it.
"""

import argparse
import contextlib
import ctypes
import datetime
import importlib.metadata
import json
import platform
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

from program import PROMPTS, ROOT, program, solve

MODELS = ["gemma-3-270m", "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"]


class Failure(Exception):
    """Something that llama.cpp does not do."""


def load(path):
    """llama.cpp's model of a GGUF file, for the CPU."""
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    if not model:
        raise Failure(f"llama.cpp does not load {path}")
    return model


class Llama:
    """A model of llama.cpp, by its low-level interface."""

    def __init__(self, path, vocab, exact, threads):
        self.model = load(path)
        self.vocab, self.exact, self.threads = vocab, exact, threads

    def adapter(self, path):
        """Loads an adapter."""
        adapter = llama_cpp.llama_adapter_lora_init(self.model, str(path).encode())
        if not adapter:
            raise Failure(f"llama.cpp does not load the adapter {path}")
        return adapter

    def greedy(self, ids, count, adapter=None):
        """The next `count` tokens, each the one of the largest logit, and the logits of each."""
        with self.context(len(ids) + count, adapter) as context:
            tokens, logits = [], []
            step = list(ids)
            while len(tokens) < count:
                logits.append(self.decode(context, step))
                tokens.append(int(logits[-1].argmax()))
                step = tokens[-1:]
            return tokens, logits

    def logits(self, ids, last, adapter=None):
        """The logits after each of the `last` tokens of `ids`, `[last, vocab]`, decoded one by one as in `greedy`."""
        begin = len(ids) - last + 1
        with self.context(len(ids), adapter) as context:
            return np.stack([self.decode(context, step) for step in (ids[:begin], *([id] for id in ids[begin:]))])

    @contextlib.contextmanager
    def context(self, size, adapter=None):
        """A context for `size` tokens, with the adapter added."""
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = size
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
            yield context
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


def run_cases(llama, cases):
    """Prints a line for each case."""
    print("case   full  reduced   tokens  program  patched  control   max |Δlogit|: patched, control")
    sums = np.zeros(4, int)
    for number, case in enumerate(cases):
        adapter = llama.adapter(case["adapter"])
        answer, full, reduced = case["answer"], case["full"], case["reduced"]
        count = len(answer) + 1
        target, wanted = llama.greedy(full, count)
        results = [llama.greedy(reduced, count, a) for a in (adapter, None)]
        equal = [equal_first(answer, target), *(equal_first(tokens, target) for tokens, _ in results)]
        far = [float(np.abs(logits[0] - wanted[0]).max()) for _, logits in results]
        sums += [count, *equal]
        cells = [f"{number:>4}", f"{len(full):>6}", *(f"{n:>8}" for n in (len(reduced), count, *equal))]
        parted = ""
        if equal[1] < count:
            second, first = np.partition(wanted[equal[1]], -2)[-2:]
            off = np.abs(results[0][1][equal[1]] - wanted[equal[1]]).max()
            parted = f"; parts at a margin of {first - second:.2g}, where |Δlogit| is {off:.2g}"
        print(*cells, f"  {far[0]:.3g}, {far[1]:.3g}{parted}", flush=True)
    wrote = f"{sums[1]} of the program's {sums[0] - len(cases)}"
    print(f"of {sums[0]} tokens equal: {sums[2]} with the adapter, {sums[3]} without; {wrote}")


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def log(level, text, _):
    """llama.cpp's errors, and none of its other words."""
    if level == 4:
        sys.stderr.write(text.decode(errors="replace"))


def solve_case(model, text, arguments, path):
    """The full and the reduced prompt, the answer, and the adapter of the span."""
    adapter = path.with_suffix(".gguf")
    options = ("--keep", arguments.keep, "--positions", "natural", "--answer-tokens", arguments.tokens)
    saved = solve(model, text, path.with_suffix(".patch"), *options, "--export", "gguf", adapter)
    all_tokens, answer = saved["split"]["tokens"], saved["split"]["answer"]
    return {
        "full": all_tokens[:-answer],
        "reduced": saved["reduced_tokens"][:-answer],
        "answer": all_tokens[-answer:],
        "adapter": adapter,
    }


def vocab_size(model):
    """The rows of a folder's embedding."""
    config = json.loads((model / "config.json").read_text())
    return config.get("text_config", config)["vocab_size"]


def check(model, arguments):
    """Prints what llama.cpp makes of a model's patches."""
    with tempfile.TemporaryDirectory() as work:
        cases = [solve_case(model, text, arguments, Path(work) / str(i)) for i, text in enumerate(PROMPTS)]
        for dtype in ("f32", "bf16"):
            path = Path(work) / "base.gguf"
            program("convert", model, path, "--dtype", dtype)
            print(f"\n{model.name} in {dtype.upper()}, kept: {arguments.keep}; {datetime.date.today()}")
            llama = Llama(path, vocab_size(model), dtype == "f32", arguments.threads)
            run_cases(llama, cases)
            llama_cpp.llama_model_free(llama.model)


def main():
    parser = argparse.ArgumentParser(description="Compare exported patches with the full prompt in llama.cpp.")
    parser.add_argument("models", nargs="*", type=Path, help="Hugging Face folders; the three real models where none is named")
    parser.add_argument("--tokens", type=int, default=24, help="greedy tokens of an answer, at most")
    parser.add_argument("--keep", default="0", help="tokens that stay, as --keep of patch has them")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("llama-cpp-python", "numpy")]
    print(f"Python {platform.python_version()}", *versions, sep=", ")
    print(llama_cpp.llama_print_system_info().decode().strip())
    for model in arguments.models or [ROOT / "models" / name for name in MODELS]:
        check(model, arguments)


if __name__ == "__main__":
    main()
