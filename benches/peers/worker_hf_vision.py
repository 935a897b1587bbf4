"""The side of transformers in benches/vision.rs: worker_hf_vision.py THREADS.

A model of the shape in `config`, random; each command names a compute type, and the time to make features of an image comes back.
"""

import json
import sys
import time

import torch
import transformers
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from serve import say

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def main():
    torch.set_num_threads(int(sys.argv[1]))
    say(detail=f"transformers {transformers.__version__}, torch {torch.__version__}")
    models = {}
    for line in sys.stdin:
        command = json.loads(line)
        dtype = DTYPES[command["dtype"]]
        config = Gemma3Config(**command["config"])
        if dtype not in models:
            torch.manual_seed(1)
            models[dtype] = Gemma3ForConditionalGeneration(config).to(dtype).eval()
        side = config.vision_config.image_size
        pixels = torch.rand(1, 3, side, side, dtype=dtype) - 0.5
        with torch.inference_mode():
            start = time.perf_counter()
            models[dtype].model.get_image_features(pixels)
            say(seconds=time.perf_counter() - start)


main()
