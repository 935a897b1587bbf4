"""The side of Hugging Face transformers in benches/peers.py: worker_hf.py MODEL f32|bf16 THREADS."""

import sys

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from serve import serve


class HuggingFace:
    """The model called directly, without `generate`, which would only add time."""

    def __init__(self, path, dtype):
        self.path = path
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
        self.fresh()

    def encode(self, text):
        from transformers import AutoTokenizer  # Here, so that other runs do not wait for it.

        return AutoTokenizer.from_pretrained(self.path)(text)["input_ids"]

    def fresh(self):
        self.cache = None

    def step(self, ids):
        out = self.model(torch.tensor([ids]), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache, self.logits = out.past_key_values, out.logits[0, -1]

    def greedy(self):
        return int(self.logits.argmax())


def main():
    path, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    disable_progress_bar()
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    with torch.inference_mode():
        serve(HuggingFace(path, dtype), f"eager attention, {torch.backends.cpu.get_cpu_capability()}")


if __name__ == "__main__":
    main()
