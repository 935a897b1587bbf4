#!/usr/bin/env python3
"""Compare the tokenizers that this crate reads from GGUF files with transformers' and llama.cpp's.

    pip install -r reference/requirements.txt llama-cpp-python==0.3.36
    cargo build --example tokenize
    python3 reference/check_gguf_tokenizers.py FOLDER > reference/check_gguf_tokenizers.txt

FOLDER has GGUF files, whole models or vocabularies alone (such as models/*.gguf in llama.cpp's sources, beside which are
texts). Of each the tokenizer is taken, with an embedding of a few bytes in place of the weights. Its ids are compared with
those of AutoTokenizer for the file, of llama.cpp, and for the models of fetch_models.py of the model's own tokenizer.json.
Then every name of `tokenizer.ggml.pre` that this crate knows is compared with llama.cpp over one vocabulary (qwen2).

Printed are the texts whose ids differ, and where they part: at which token, theirs and ours. Run by hand: nothing in the
tests needs it.
"""

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import logging
import re
import subprocess
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from gguf import GGUFValueType
from transformers import AutoTokenizer

from check_tokenizers import MODEL_TEXTS

ROOT = Path(__file__).resolve().parent.parent
OURS = ROOT / "target/debug/examples/tokenize"
SHOWN = 4
PARTED = "\n__ggml_vocab_test__\n"
OWN = {
    "gemma-3-270m-q4_k_m": "gemma-3-270m",
    "smollm2-135m-q4_1": "smollm2-135m-instruct",
    "qwen2.5-coder-0.5b-q4_k_m": "qwen2.5-coder-0.5b-instruct",
}
ARCHITECTURES = ["falcon", "gemma", "gemma2", "gemma3", "gpt2", "gptj", "llama", "qwen2", "qwen3"]


def quiet(*_):
    """llama.cpp says much."""


LOG = llama_cpp.llama_log_callback(quiet)


def special_tokens(reader):
    """The control and user-defined tokens of a file, some of them, with and without spaces between."""
    tokens = contents(reader, "tokenizer.ggml.tokens")
    kinds = contents(reader, "tokenizer.ggml.token_type") or []
    found = [token for token, kind in zip(tokens, kinds) if kind in (3, 4) and not token.startswith("[PAD")]
    found = found[:12] + found[-12:]
    return ["a".join(found), " ".join(found), "  ".join(found) + " \n"]


def contents(reader, key):
    """A value, or None."""
    field = reader.fields.get(key)
    return field and field.contents()


def shrink(reader, path, changes):
    """Writes a file that has the tokenizer of another, with changed values, and no weights to speak of."""
    architecture = contents(reader, "general.architecture")
    if architecture not in ARCHITECTURES:
        architecture = "llama"
    writer = gguf.GGUFWriter(path, architecture)
    for key, field in reader.fields.items():
        if key.startswith("tokenizer."):
            value = changes.get(key, field.contents())
            of = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(key, value, field.types[0], sub_type=of)
    sizes = ["embedding_length", "feed_forward_length", "attention.key_length", "attention.value_length", "rope.dimension_count"]
    for name in sizes + ["context_length"]:
        writer.add_uint32(f"{architecture}.{name}", 8)
    for name in ["block_count", "attention.head_count", "attention.head_count_kv"]:
        writer.add_uint32(f"{architecture}.{name}", 1)
    for name in ["attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"]:
        writer.add_float32(f"{architecture}.{name}", 1e-5)
    tokens = len(contents(reader, "tokenizer.ggml.tokens"))
    writer.add_tensor("token_embd.weight", np.zeros((tokens, 8), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ours(path, texts):
    """Our ids, or why there are none."""
    done = subprocess.run([OURS, path], input=json.dumps(texts), capture_output=True, text=True)
    if done.returncode != 0:
        return done.stderr.strip().replace(f"{path}: ", "")
    return json.loads(done.stdout)


def of_llama_cpp(path, texts):
    """llama.cpp's ids."""
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    llama_cpp.llama_log_set(LOG, ctypes.c_void_p(0))
    return [model.tokenize(text.encode(), add_bos=True, special=True) for text in texts]


def of_transformers(path, texts):
    """transformers' ids for the file, or why there are none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # It has many.
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return [tokenizer(text)["input_ids"] for text in texts]


def once(ids, bos):
    """The ids with one `bos` where they begin with several, as ours are by intent."""
    while bos and ids[:2] == bos * 2:
        ids = ids[1:]
    return ids


def show(name, texts, theirs, mine):
    """Prints how many texts differ, and where."""
    if isinstance(theirs, str):
        print(f"  {name}: {theirs}")
        return
    theirs = [once(ids, mine[texts.index("")][:1]) for ids in theirs]
    differing = [place for place in range(len(texts)) if theirs[place] != mine[place]]
    print(f"  {name}: {len(differing)} of {len(texts)} texts differ")
    for place in differing[:SHOWN]:
        pairs = enumerate(zip(theirs[place] + [None], mine[place] + [None]))
        at = next(at for at, (one, other) in pairs if one != other)
        print(f"    {ascii(texts[place][:40])} at {at}: {theirs[place][at:at + 4]} {mine[place][at:at + 4]}")
    if len(differing) > SHOWN:
        print(f"    and {len(differing) - SHOWN} more")


def check_file(path, work):
    """Compares the tokenizer of one file."""
    reader = gguf.GGUFReader(path)
    model, pre = (contents(reader, f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    print(f"{path.name}: {contents(reader, 'general.architecture')}, {model}, {pre}")
    if contents(reader, "tokenizer.ggml.tokens") is None:
        print("  no tokens")
        return
    beside = path.with_name(path.name + ".inp")
    more = beside.read_bytes().decode().split(PARTED) if beside.exists() else []
    texts = list(dict.fromkeys(MODEL_TEXTS + special_tokens(reader) + more))
    small = work / path.name
    shrink(reader, small, {})
    mine = ours(small, texts)
    if isinstance(mine, str):
        print(f"  refused: {mine}")
        return
    if path.stem in OWN:
        tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / OWN[path.stem])
        show("its own tokenizer", texts, [tokenizer(text)["input_ids"] for text in texts], mine)
    show("transformers", texts, of_transformers(path, texts), mine)
    show("llama.cpp", texts, of_llama_cpp(path, texts), mine)


def check_names(path, work):
    """Compares every way of cutting texts over one vocabulary."""
    reader, small = gguf.GGUFReader(path), work / "named.gguf"
    key = "tokenizer.ggml.pre"
    shrink(reader, small, {key: "?"})
    names = re.search(r"one of (.*);", ours(small, [])).group(1).split(", ")
    print(f"names of {key} over {path.name}")
    for name in names:
        shrink(reader, small, {key: name})
        show(f"{name}, llama.cpp", MODEL_TEXTS, of_llama_cpp(small, MODEL_TEXTS), ours(small, MODEL_TEXTS))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    logging.disable()
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "tokenizers", "llama-cpp-python")]
    print(f"{datetime.date.today()}, {', '.join(versions)}")
    paths = sorted(folder.glob("*.gguf"))
    with tempfile.TemporaryDirectory() as work:
        for path in paths:
            check_file(path, Path(work))
            (Path(work) / path.name).unlink(missing_ok=True)
        for path in paths:
            if path.name == "ggml-vocab-qwen2.gguf":
                check_names(path, Path(work))


if __name__ == "__main__":
    main()
