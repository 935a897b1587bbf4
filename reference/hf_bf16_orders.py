#!/usr/bin/env python3
"""How far Hugging Face's bf16 logits differ from themselves: the table at the end of docs/numerics.md.

    python3 reference/hf_bf16_orders.py [NAME ...]        # ten minutes for all ten prompts

Evaluates each golden prompt of the 270M (fetch_models.py brings it) in one piece, token by token with a cache, and in two
pieces, and prints the L-infinity error of the last position's logits, every 64th entry, against the NumPy float64
reference's golden data.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import Gemma3ForCausalLM

HERE = Path(__file__).parent


@torch.no_grad()
def last_logits(model, ids, ends):
    """The last position's logits [vocab], the tokens taken in as pieces that end at `ends`."""
    cache, start = None, 0
    for end in ends:
        out = model(ids[:, start:end], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, start = out.past_key_values, end
    return out.logits[0, -1]


def main():
    model = Gemma3ForCausalLM.from_pretrained(
        HERE.parent / "models/gemma-3-270m", dtype=torch.bfloat16, attn_implementation="eager").eval()
    truth = load_file(HERE / "golden/gemma-3-270m.f64.safetensors")
    for prompt in json.loads((HERE / "golden/gemma-3-270m.json").read_text())["prompts"]:
        name, ids = prompt["name"], torch.tensor([prompt["ids"]])
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        n = ids.shape[1]
        errors = []
        for ends in ([n], range(1, n + 1), [n // 2, n]):
            logits = last_logits(model, ids, ends)[::64].double()
            errors.append((logits - truth[name + ".logits_f64"]).abs().max().item())
        print("%-10s one piece %.3f, token by token %.3f, two pieces %.3f" % (name, *errors), flush=True)


if __name__ == "__main__":
    main()
