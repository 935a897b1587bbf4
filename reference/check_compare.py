#!/usr/bin/env python3
"""Hold recordings of transformers and of llama.cpp against ours.

    pip install -r reference/requirements.txt llama-cpp-python gguf
    cargo build --release && python3 reference/check_compare.py > reference/check_compare.txt

Records, by hf_trace.py, every point of the small checkpoints and of the 270M in f32 and bf16, and by llama_trace.py those of the
270M with F32 and with BF16 weights, and prints what `context-patch compare` says: a line each, then every figure of the 270M in
transformers. The 270M runs a prompt of 679 tokens, more than its window has. Needs 6 GB in the temporary folder.

Run by hand: nothing in the tests needs it.
"""

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from program import ROOT, program

MODEL = Path("models/gemma-3-270m")
SMALL_TOKENS = 40


def ids_of(model):
    """The token ids that a model runs."""
    if model == MODEL:
        golden = json.loads((ROOT / "reference/golden/gemma-3-270m.json").read_text())
        return next(prompt["ids"] for prompt in golden["prompts"] if prompt["name"] == "refrain")
    config = json.loads((ROOT / model / "config.json").read_text())
    vocab_size = config.get("text_config", config)["vocab_size"]
    return [2] + [(i * i * 7 + 3) % vocab_size for i in range(1, SMALL_TOKENS)]


def record(script, *arguments):
    """Runs a recorder; what it says is of no interest unless it fails."""
    command = [sys.executable, ROOT / "reference" / script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(map(str, arguments))}: {done.stderr}")


def compare(engine, model, kind, reference, other, *options):
    """Prints what compare says in a line, and returns its table."""
    json_file = reference.parent / "report.json"
    table = program("compare", reference, other, "--model", ROOT / model, "--json", json_file, *options, codes=(0, 1))
    label = f"{engine} {model} {kind}"
    report = json.loads(json_file.read_text())
    rows = report["rows"]
    beyond = Counter(row["name"].split(".", 3)[-1] for row in rows if row["beyond"])
    replayed = sum(row["replayed"] for row in rows)
    line = f"{label:<55} tokens {report['tokens']}, tensors {len(rows)}, replayed {replayed}, beyond {sum(beyond.values())}"
    if report["finding"]:
        causes = " or ".join(cause["name"] for cause in report["finding"]["causes"]) or "no known bug"
        line += f", first {report['finding']['tensor']}: {causes}; " + ", ".join(f"{name} {n}" for name, n in beyond.items())
    print(line, flush=True)
    return table


def main():
    names = ("transformers", "torch", "llama-cpp-python", "context-patch")
    versions = [importlib.metadata.version(name) for name in names[:-1]] + [program("--version").split()[-1]]
    print(", ".join(f"{name} {version}" for name, version in zip(names, versions)), end="\n\n")
    small = sorted(path.relative_to(ROOT) for path in (ROOT / "reference/checkpoints").iterdir())
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        ids, reference, other = folder / "ids.json", folder / "reference.safetensors", folder / "other.safetensors"
        for model in [Path("reference/tiny"), *small, MODEL]:
            ids.write_text(json.dumps(ids_of(model)))
            program("trace", "--model", ROOT / model, "--ids", ids, "--dtype", "f64", "--output", reference)
            for dtype in ("f32", "bf16"):
                record("hf_trace.py", model, "--ids", ids, "--dtype", dtype, "--output", other)
                tables[model, dtype] = compare("transformers", model, dtype, reference, other)
        for weights, options in (("F32", []), ("BF16", ["--bf16"])):
            other = folder / "other.npz"
            record("llama_trace.py", MODEL, "--ids", ids, *options, "--output", other)
            compare("llama.cpp", MODEL, weights, reference, other, "--partial", "--dtype", "f32")
    for dtype in ("f32", "bf16"):
        print(f"\ntransformers {MODEL} {dtype}\n{tables[MODEL, dtype]}", end="")


if __name__ == "__main__":
    main()
