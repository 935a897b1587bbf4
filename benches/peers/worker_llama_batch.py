"""The side of llama.cpp in benches/batch.rs: worker_llama_batch.py GGUF THREADS.

Sequences that write together by its low-level interface, greedily. Commands on standard input, a line of JSON back for each.
"""

import ctypes
import json
import sys
import time

import llama_cpp
import numpy as np

from serve import say
from worker_llama import log


class Batch:
    """As many sequences of a model as are asked for, each with room for `length` tokens."""

    def __init__(self, model, threads, sequences, length):
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = sequences * length
        options.n_seq_max = sequences
        options.n_batch = max(options.n_batch, sequences * length)
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(model, options)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.batch = llama_cpp.llama_batch_init(sequences * length, 0, 1)

    def take(self, tokens):
        """Takes in tokens of each sequence, `(position, ids)`; the likeliest after the last of each."""
        batch, n, last = self.batch, 0, []
        for sequence, (position, ids) in enumerate(tokens):
            for i, token in enumerate(ids):
                batch.token[n], batch.pos[n] = token, position + i
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
                batch.logits[n] = i + 1 == len(ids)
                n += 1
            last.append(n - 1)
        batch.n_tokens = n
        status = llama_cpp.llama_decode(self.context, batch)
        if status != 0:
            raise SystemExit(f"llama_decode gives {status}")
        logits = (llama_cpp.llama_get_logits_ith(self.context, row) for row in last)
        return [int(np.ctypeslib.as_array(row, (self.vocab,)).argmax()) for row in logits]

    def run(self, prompts, count):
        """The seconds for the prompts and `count` tokens after each, and for the tokens alone."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        start = time.perf_counter()
        written = self.take([(0, ids) for ids in prompts])
        read = time.perf_counter()
        for i in range(count - 1):
            written = self.take([(len(ids) + i, [token]) for ids, token in zip(prompts, written)])
        end = time.perf_counter()
        return {"whole": end - start, "writing": end - read}

    def close(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)


def main():
    path, threads = sys.argv[1:]
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(path.encode(), options)
    say(detail=f"llama-cpp-python {llama_cpp.__version__}, its default caches, flash attention as it likes")
    batch, sequences = None, 0
    for line in sys.stdin:
        command = json.loads(line)
        prompts, count = command["prompts"], command["tokens"]
        if sequences != len(prompts):
            if batch:
                batch.close()
            sequences = len(prompts)
            batch = Batch(model, int(threads), sequences, len(prompts[0]) + count)
        say(**batch.run(prompts, count))


if __name__ == "__main__":
    main()
