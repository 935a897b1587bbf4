"""The side of llama.cpp in benches/peers.py: worker_llama.py GGUF f32|bf16 THREADS."""

import ctypes
import sys

import llama_cpp
import numpy as np

from serve import serve

POSITIONS = 1024


class Llama:
    """A model of llama.cpp, by its low-level interface."""

    def __init__(self, path, dtype, threads):
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        model = llama_cpp.llama_model_load_from_file(path.encode(), options)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = POSITIONS
        options.n_threads = options.n_threads_batch = threads
        if dtype == "f32":  # All of it; the default caches are F16.
            options.type_k = options.type_v = 0  # GGML_TYPE_F32
            options.flash_attn_type = 0  # off
        self.context = llama_cpp.llama_init_from_model(model, options)
        self.memory = llama_cpp.llama_get_memory(self.context)

    def fresh(self):
        llama_cpp.llama_memory_clear(self.memory, False)

    def step(self, ids):
        array = (llama_cpp.llama_token * len(ids))(*ids)
        status = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(ids)))
        if status != 0:
            raise SystemExit(f"llama_decode gives {status}")
        # A batch is computed when something is asked of it.
        self.logits = llama_cpp.llama_get_logits_ith(self.context, -1)

    def greedy(self):
        return int(np.ctypeslib.as_array(self.logits, (self.vocab,)).argmax())


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def log(level, text, _):
    """llama.cpp's errors, and none of its other words."""
    if level == 4:
        sys.stderr.write(text.decode(errors="replace"))


def main():
    path, dtype, threads = sys.argv[1:]
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    caches = "F32 caches, no flash attention" if dtype == "f32" else "its default F16 caches, flash attention as it likes"
    instructions = llama_cpp.llama_print_system_info().decode().replace(" = 1", "").strip(" |")
    serve(Llama(path, dtype, int(threads)), f"{caches}; {instructions}")


if __name__ == "__main__":
    main()
