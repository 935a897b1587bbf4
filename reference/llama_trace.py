#!/usr/bin/env python3
"""Record what llama.cpp computes, under the names that llama.cpp gives its tensors.

    pip install llama-cpp-python numpy        (in an environment of its own; it compiles llama.cpp)
    python3 reference/llama_trace.py models/gemma-3-270m --ids ids.json --output llama.npz
    python3 reference/llama_trace.py gemma-3-270m.Q4_K_M.gguf --ids ids.json --output llama.npz

The model is a GGUF file, or a Hugging Face folder, which is written as GGUF in F32 (`--bf16`: matrices in BF16) to a temporary
folder, as far as `context-patch convert` can. It is run on the CPU, all tokens in one batch and every token's logits asked
for. The callback that llama.cpp's `llama-eval-callback` prints with (`cb_eval`) hands over each operation's result. Written is an
.npz with the array `ids` and, for each tensor with a layer's or a result's name, an array in numpy's axes (ggml's reversed):

* `l_out-3`: the tensor of that name;
* `Qcur-3.MUL_MAT`, `Qcur-3.ROPE`: where several operations share a name, each with its operation. Results
  that only look at another one anew (RESHAPE, VIEW, PERMUTE, TRANSPOSE) are left out;
* `blk.3.attn_output`: a product without a name of its own has that of its weight.
"""

import argparse
import ctypes
import json
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

from check_llama_cpp import Failure, load, log
from program import program

VIEWS = {"RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE", "NONE"}
UNNAMED = ("node_", "leaf_", "cache_", "norm")


class Tensor(ctypes.Structure):
    """The head of a ggml_tensor, as ggml.h lays it out."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
    ]


def open_ggml():
    """The functions of the shared library that read a tensor."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    found = sorted(folder.glob("*ggml-base*"))
    if not found:
        raise Failure(f"{folder} has no ggml-base library")
    ggml = ctypes.CDLL(str(found[0]))
    for name, result in [("ggml_get_name", ctypes.c_char_p), ("ggml_op_desc", ctypes.c_char_p)]:
        getattr(ggml, name).restype, getattr(ggml, name).argtypes = result, [ctypes.c_void_p]
    ggml.ggml_is_contiguous.restype, ggml.ggml_is_contiguous.argtypes = ctypes.c_bool, [ctypes.c_void_p]
    ggml.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    return ggml


class Recorder:
    """Results by name and operation, from llama.cpp's callback."""

    def __init__(self, ggml):
        self.ggml, self.results, self.failure = ggml, [], None
        # Kept here: ctypes does not keep what C holds.
        self.callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)(self.on_result)

    def on_result(self, pointer, ask, _):
        """First asked whether a result is wanted, then handed it. What is raised here would be lost in C."""
        try:
            name, operation = self.name(pointer)
            if ask:
                return name is not None
            self.results.append((name, operation, self.read(name, pointer)))
        except Exception as error:
            self.failure = self.failure or error
            return ask
        return True

    def name(self, pointer):
        """The name to record a result under, or None, and its operation."""
        name = self.ggml.ggml_get_name(pointer).decode(errors="replace")
        operation = self.ggml.ggml_op_desc(pointer).decode()
        if operation in VIEWS:
            return None, operation
        tensor = Tensor.from_address(pointer)
        if name.startswith("node_") and operation == "MUL_MAT" and tensor.src[0]:
            weight = self.ggml.ggml_get_name(tensor.src[0]).decode(errors="replace")
            return (weight.removesuffix(".weight") if weight.startswith("blk.") else None), operation
        return (None if name.startswith(UNNAMED) else name), operation

    def read(self, name, pointer):
        """A result's numbers, the axes of length 1 in front removed."""
        tensor = Tensor.from_address(pointer)
        if tensor.type != 0 or not self.ggml.ggml_is_contiguous(pointer):
            raise Failure(f"{name} is not contiguous F32")
        shape = list(tensor.ne)[::-1]
        while len(shape) > 2 and shape[0] == 1:
            shape.pop(0)
        numbers = np.empty(shape, np.float32)
        self.ggml.ggml_backend_tensor_get(pointer, numbers.ctypes.data, 0, numbers.nbytes)
        return numbers

    def arrays(self):
        """The arrays to write: names that several operations share have the operation after them."""
        if self.failure:
            raise Failure(self.failure)
        names = [name for name, _, _ in self.results]
        arrays = {}
        for name, operation, numbers in self.results:
            full = name if names.count(name) == 1 else f"{name}.{operation}"
            if full in arrays:
                raise Failure(f"{full} was computed twice")
            arrays[full] = numbers
        return arrays


def tokens_of(model, text):
    """The token ids of a text, special tokens in it and around it included, as llama.cpp has them."""
    vocab, text = llama_cpp.llama_model_get_vocab(model), text.encode()
    tokens = (llama_cpp.llama_token * (len(text) + 8))()
    count = llama_cpp.llama_tokenize(vocab, text, len(text), tokens, len(tokens), True, True)
    if count < 0:
        raise Failure("llama.cpp makes no tokens of the prompt")
    return list(tokens[:count])


def run(model, ids, recorder, threads):
    """Runs `ids` in one batch, every token's logits asked for."""
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = len(ids)
    options.n_threads = options.n_threads_batch = threads
    options.type_k = options.type_v = 0  # GGML_TYPE_F32
    options.flash_attn_type = 0  # off: with it there is no softmax to look at
    options.cb_eval = ctypes.cast(recorder.callback, type(options.cb_eval))
    context = llama_cpp.llama_init_from_model(model, options)
    if not context:
        raise Failure("llama.cpp makes no context")
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    try:
        recorder.results.clear()
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        status = llama_cpp.llama_decode(context, batch)
        if status != 0:
            raise Failure(f"llama_decode gives {status}")
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)


def main():
    parser = argparse.ArgumentParser(description="Record the intermediates of llama.cpp.")
    parser.add_argument("model", type=Path, help="GGUF file, or Hugging Face folder")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--prompt", help="text to run; of a folder it needs the tokenizers package")
    given.add_argument("--ids", type=Path, help="file with a JSON list of token ids to run")
    parser.add_argument("--bf16", action="store_true", help="matrices of a folder in BF16; otherwise F32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True, help=".npz file to write")
    arguments = parser.parse_args()
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    try:
        recorder = Recorder(open_ggml())
        with tempfile.TemporaryDirectory() as work:
            path = arguments.model
            if path.is_dir():
                path = Path(work) / "base.gguf"
                program("convert", arguments.model, path, "--dtype", "bf16" if arguments.bf16 else "f32")
            model = load(path)
            if arguments.ids:
                ids = json.loads(arguments.ids.read_text())
            elif arguments.model.is_dir():
                from tokenizers import Tokenizer

                ids = Tokenizer.from_file(str(arguments.model / "tokenizer.json")).encode(arguments.prompt).ids
            else:
                ids = tokens_of(model, arguments.prompt)
            run(model, ids, recorder, arguments.threads)
            llama_cpp.llama_model_free(model)
        with open(arguments.output, "wb") as file:
            np.savez(file, ids=np.array(ids, np.int64), **recorder.arrays())
    except (Failure, OSError) as error:
        sys.exit(f"llama_trace.py: {error}")


if __name__ == "__main__":
    main()
