#!/usr/bin/env python3
"""Hold recordings of transformers and of llama.cpp against ours.

    pip install -r reference/requirements.txt llama-cpp-python gguf
    cargo build --release && python3 reference/check_compare.py > reference/check_compare.txt

Records, by hf_trace.py, every point of the small checkpoints of all families and of the real models in f32 and bf16, those that
see also with pictures, and by llama_trace.py those of the real models with F32 and with BF16 weights and of their GGUF files, and prints what `context-patch
compare` says: a line each, then every figure of the 270M in transformers. The 270M runs a prompt of 679 tokens, more than its
window has. Needs 6 GB in the temporary folder. Models named on the command line are the only ones; llama.cpp is left out without
llama-cpp-python.

Phi 3 has no checkpoint of its own here: `phi3` is Mistral's, its maps in one where Phi 3 has one.

Run by hand: nothing in the tests needs it.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import cat

from program import ROOT, program

MODEL = "models/gemma-3-270m"
# Real models of other families, which run their prompt's first tokens alone.
OTHERS = ["models/smollm2-135m-instruct", "models/qwen2.5-coder-0.5b-instruct"]
PHI3 = "phi3"
OTHERS_TOKENS = 100
# Their weights as they are stored, for llama.cpp alone.
FILES = [f"{model}.gguf" for model in (MODEL, *OTHERS)]
SMALL_TOKENS = 40
# One by itself, and two that follow one another.
PICTURES = [ROOT / "reference/pictures" / name for name in ("rgb-8.png", "palette-8.png", "rgb-113x56.png")]


def write_phi3(folder):
    """Writes Mistral's checkpoint as one of Phi 3."""
    mistral = ROOT / "reference/checkpoints/mistral"
    config = json.loads((mistral / "config.json").read_text())
    config |= {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "pad_token_id": 0}
    fused = {"q_proj": ("qkv_proj", "q_proj", "k_proj", "v_proj"), "gate_proj": ("gate_up_proj", "gate_proj", "up_proj")}
    stored, tensors = load_file(mistral / "model.safetensors"), {}
    for name, tensor in stored.items():
        module = name.split(".")[-2]
        if module in fused:
            whole, *parts = fused[module]
            tensors[name.replace(module, whole)] = cat([stored[name.replace(module, part)] for part in parts])
        elif module not in ("k_proj", "v_proj", "up_proj"):
            tensors[name] = tensor
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def ids_of(model, folder):
    """The token ids that a model runs, which lies in `folder`."""
    model = model.removesuffix(".gguf")
    if model == MODEL:
        golden = json.loads((ROOT / "reference/golden/gemma-3-270m.json").read_text())
        return next(prompt["ids"] for prompt in golden["prompts"] if prompt["name"] == "refrain")
    if model in OTHERS:
        golden = json.loads((ROOT / f"reference/golden/{Path(model).name}.json").read_text())
        return max((prompt["ids"] for prompt in golden["prompts"]), key=len)[:OTHERS_TOKENS]
    config = json.loads((folder / "config.json").read_text())
    vocab_size = config.get("text_config", config)["vocab_size"]
    ids = [2] + [(i * i * 7 + 3) % vocab_size for i in range(1, SMALL_TOKENS)]
    # No token of a picture where there is none.
    return [i - (i == config.get("image_token_index")) for i in ids]


def ids_with_pictures(folder):
    """The token ids of a text with the tokens of PICTURES, for a model that sees; the last two have no text between them."""
    config = json.loads((folder / "config.json").read_text())
    image = [config["image_token_index"]] * config["mm_tokens_per_image"]
    begin, end = [config["boi_token_index"]], [config["eoi_token_index"]]
    return [2, 10, 11] + begin + image + end + [12, 13, 14, 15] + begin + image + image + end + [16, 17, 18]


def record(script, *arguments):
    """Runs a recorder; what it says is of no interest unless it fails."""
    command = [sys.executable, ROOT / "reference" / script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(map(str, arguments))}: {done.stderr}")


def figure(x):
    """A number to two digits, as Rust writes it."""
    return "0" if x == 0 else re.sub(r"e([+-])0?(\d)", lambda e: "e" + e[1].strip("+") + e[2], f"{x:.1e}")


def cells(row, dtype):
    """The figures of a tensor."""
    ulps = row["ulps"]
    beyond = row["beyond"] and 100 * row["beyond"]["numbers"] / row["numbers"]
    return [
        row["name"].removeprefix("model.layers."),
        figure(row["linf"]),
        figure(row["relative"]),
        figure(max(row["one_minus_cosine"], 0)),
        f"{ulps:.1f}" if ulps < 1e4 else figure(ulps),
        figure(row["floor"]["bf16" if dtype == "bf16" else "f32"]),
        figure(row["inherited"]),
        figure(row["added"]),
        "–" if beyond is None else "< 1 %" if beyond < 1 else f"{int(beyond)} %",
    ]


def table(report):
    """A line for every tensor."""
    header = ["model.layers.", "L∞", "rel.", "1−cos", "ulps", "floor", "inherited", "added", "beyond"]
    lines = [header, *(cells(row, report["dtype"]) for row in report["rows"])]
    widths = [max(map(len, column)) for column in zip(*lines)]
    pad = [str.ljust] + [str.rjust] * (len(header) - 1)
    return "".join("  ".join(map(lambda p, c, w: p(c, w), pad, line, widths)) + "\n" for line in lines)


def compare(label, reference, other, *options):
    """Prints what compare says in a line, and returns a table of every tensor."""
    json_file = reference.parent / "report.json"
    program("compare", reference, other, "--json", json_file, *options, codes=(0, 1))
    report = json.loads(json_file.read_text())
    rows = report["rows"]
    beyond = Counter(row["name"].split(".", 3)[-1] for row in rows if row["beyond"])
    replayed = sum(row["replayed"] for row in rows)
    rounded = Counter(row["activations"] for row in rows if row["activations"])
    line = f"{label:<57} tokens {report['tokens']}, tensors {len(rows)}, replayed {replayed}, beyond {sum(beyond.values())}"
    if rounded:
        line += f", activations-q8 {rounded.total()} (" + ", ".join(f"{name} {n}" for name, n in sorted(rounded.items())) + ")"
    if report["finding"]:
        causes = " or ".join(cause["name"] for cause in report["finding"]["causes"]) or "no known bug"
        line += f", first {report['finding']['tensor']}: {causes}; " + ", ".join(f"{name} {n}" for name, n in beyond.items())
    print(line, flush=True)
    return table(report)


def compare_pictures(model, folder, ids, reference, other):
    """Prints what compare says of a text with pictures, in each type."""
    ids.write_text(json.dumps(ids_with_pictures(folder)))
    given = [folder, "--ids", ids, *(option for picture in PICTURES for option in ("--image", picture))]
    program("trace", "--model", *given, "--dtype", "f64", "--output", reference)
    for dtype in ("f32", "bf16"):
        record("hf_trace.py", *given, "--dtype", dtype, "--output", other)
        compare(f"transformers {Path(model).name} 3 pictures {dtype}", reference, other)


def version(name):
    """A package's version, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main():
    names = ("transformers", "torch", "llama-cpp-python", "context-patch")
    versions = [version(name) for name in names[:-1]] + [program("--version").split()[-1]]
    print(", ".join(f"{name} {version}" for name, version in zip(names, versions) if version), end="\n\n")
    small = sorted(path.relative_to(ROOT) for path in (ROOT / "reference/checkpoints").iterdir())
    models = sys.argv[1:] or ["reference/tiny", "reference/tiny-vision", *map(str, small), PHI3, MODEL, *OTHERS, *FILES]
    tables = {}
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        ids, arrays = work / "ids.json", work / "other.npz"
        reference, other = work / "reference.safetensors", work / "other.safetensors"
        write_phi3(work / PHI3)
        for model in models:
            folder = work / PHI3 if model == PHI3 else ROOT / model
            ids.write_text(json.dumps(ids_of(model, folder)))
            program("trace", "--model", folder, "--ids", ids, "--dtype", "f64", "--output", reference)
            for dtype in () if model.endswith(".gguf") else ("f32", "bf16"):
                record("hf_trace.py", folder, "--ids", ids, "--dtype", dtype, "--output", other)
                tables[model, dtype] = compare(f"transformers {model} {dtype}", reference, other)
            if "vision" in model:
                compare_pictures(model, folder, ids, reference, other)
            if model not in (MODEL, *OTHERS, *FILES) or not version("llama-cpp-python"):
                continue
            as_stored, converted = [("", [])], [(" F32", []), (" BF16", ["--bf16"])]
            for weights, options in as_stored if model in FILES else converted:
                record("llama_trace.py", folder, "--ids", ids, *options, "--output", arrays)
                compare(f"llama.cpp {model}{weights}", reference, arrays, "--partial", "--dtype", "f32")
    for dtype in ("f32", "bf16") if MODEL in models else ():
        print(f"\ntransformers {MODEL} {dtype}\n{tables[MODEL, dtype]}", end="")


if __name__ == "__main__":
    main()
