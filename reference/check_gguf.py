#!/usr/bin/env python3
"""Hold what the program makes of GGUF files against transformers, llama.cpp and the paper's protocol.

    pip install -r reference/requirements.txt
    cargo build --release && python3 reference/check_gguf.py FILE.gguf … > reference/check_gguf.txt

For each file:

- *logits*: those of five prompts in f32, held against the program's own in f64, beside what transformers gives in f32 for the
  same weights, dequantised by `context-patch convert --dtype f32`; and the tokens of both for 24 steps;
- *verify*: the five prompts, closed form and span, f32 and f64;
- *llama.cpp*: the tokens that it writes from the prompt, and from the reduced prompt with a span merged into the file or as an
  adapter. It rounds activations to 8 bits where weights are quantised and so writes another text by itself; on the same weights in
  F32 it does not.

Run by hand: it takes a quarter of an hour.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from program import PROGRAM, PROMPTS, program, solve

STEPS = 24
SPAN = ("--answer-tokens", STEPS, "--dtype", "f32", "--keep", "0", "--positions", "natural")


def ids_of(model, prompt, folder):
    """A prompt's tokens, as the program has them."""
    file = folder / "trace.safetensors"
    program("trace", "--model", model, "--prompt", prompt, "--output", file, "--dtype", "f32")
    with safe_open(file, "np") as recording:
        return json.loads(recording.metadata()["ids"])


def logits(model, ids, dtype, folder):
    """The program's logits, `[tokens, vocab]`."""
    (folder / "ids.json").write_text(json.dumps(ids))
    file = folder / "trace.safetensors"
    program("trace", "--model", model, "--ids", folder / "ids.json", "--output", file, "--dtype", dtype)
    return load_file(file)["lm_head"].reshape(len(ids), -1).astype(np.float64)


def greedy(model, ids):
    """The tokens that transformers writes."""
    prompt = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=STEPS,
                             do_sample=False)
    return out[0, len(ids):].tolist()


def check_logits(file, folder):
    """How far from f64, beside transformers on the dequantised weights."""
    wide = folder / "wide"
    program("convert", file, wide, "--dtype", "f32")
    theirs = AutoModelForCausalLM.from_pretrained(wide, dtype=torch.float32, attn_implementation="eager").eval()
    # It writes on behind an end; a least number of tokens would have it avoid one.
    theirs.generation_config.eos_token_id = None
    squares, count, same, tokens = [0.0, 0.0], 0, 0, 0
    worst = [0.0, 0.0]
    for prompt in PROMPTS:
        ids = ids_of(file, prompt, folder)
        exact = logits(file, ids, "f64", folder)
        with torch.no_grad():
            hf = theirs(input_ids=torch.tensor([ids])).logits[0].double().numpy()
        for who, got in enumerate((logits(file, ids, "f32", folder), hf)):
            squares[who] += float(((got - exact) ** 2).sum())
            worst[who] = max(worst[who], float(np.abs(got - exact).max()))
        count += exact.size
        # After each of their tokens ours is the same: then it writes them, too.
        text = ids + greedy(theirs, ids)
        ours = logits(file, text[:-1], "f32", folder)[-STEPS:].argmax(-1)
        same += sum(a == b for a, b in zip(ours.tolist(), text[-STEPS:]))
        tokens += STEPS
    rms = [(square / count) ** 0.5 for square in squares]
    print(f"  logits, f32 against f64: ours {rms[0]:.1e} (at most {worst[0]:.1e}), transformers {rms[1]:.1e} "
          f"(at most {worst[1]:.1e}); greedy tokens as transformers: {same} of {tokens}", flush=True)


def check_verify(file):
    """The paper's protocol."""
    for dtype in ("f64", "f32"):
        for solver, tokens in (("closed-form", 5), ("span", STEPS)):
            out = subprocess.run([PROGRAM, "verify", "--model", file, "--dtype", dtype, "--solver", solver,
                                  "--tokens", str(tokens)], capture_output=True, text=True)
            said = [line for line in out.stdout.splitlines() if line.strip()]
            print(f"  verify {solver} {dtype}: exit {out.returncode}; {said[-1] if said else out.stderr.strip()}", flush=True)


def llama_writes(file, ids, lora=None):
    """The tokens that llama.cpp writes from these, in a process of its own."""
    code = """
import json, sys
from llama_cpp import Llama
file, lora, ids, steps = sys.argv[1], sys.argv[2] or None, json.loads(sys.argv[3]), int(sys.argv[4])
model = Llama(file, lora_path=lora, n_ctx=1024, n_threads=2, verbose=False, logits_all=False)
out = []
for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
    out.append(token)
    if len(out) == steps:
        break
print(json.dumps(out))
"""
    done = subprocess.run([sys.executable, "-c", code, str(file), str(lora or ""), json.dumps(ids), str(STEPS)],
                          capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def check_llama(file, folder):
    """llama.cpp on the file and on the same weights in F32: with the prompt, with the patch merged, and with the adapter."""
    wide = folder / "wide.gguf"
    program("convert", folder / "wide", wide)
    counts, total = {}, 0
    for number, prompt in enumerate(PROMPTS):
        merged, adapter = folder / f"{number}.gguf", folder / f"{number}-lora.gguf"
        exports = ("--export", "merged", merged, "--export", "gguf", adapter)
        saved = solve(file, prompt, folder / f"{number}.patch", *SPAN, *exports)
        tokens, answer = saved["split"]["tokens"], saved["split"]["answer"]
        total += answer
        whole, reduced = tokens[:-answer], saved["reduced_tokens"][:-answer]
        for what, got in {
            "F32: the prompt": llama_writes(wide, whole),
            "F32: adapter": llama_writes(wide, reduced, adapter),
            "F32: no patch (control)": llama_writes(wide, reduced),
            "the file: the prompt": llama_writes(file, whole),
            "the file: adapter": llama_writes(file, reduced, adapter),
            "the file: merged": llama_writes(merged, reduced),
        }.items():
            same = [a == b for a, b in zip(got, tokens[-answer:])] + [False]
            counts[what] = counts.get(what, 0) + same.index(False)
        merged.unlink()
    said = "; ".join(f"{what} {count}" for what, count in counts.items())
    print(f"  llama.cpp writes of the program's {total} tokens before the first other one: {said}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    version = program("--version").strip()
    print(f"{datetime.date.today()}, {version}, transformers {transformers.__version__}, torch {torch.__version__}")
    for file in arguments.files:
        print(f"\n{file.name}")
        with tempfile.TemporaryDirectory() as folder:
            check_logits(file, Path(folder))
            check_verify(file)
            check_llama(file, Path(folder))


if __name__ == "__main__":
    main()
