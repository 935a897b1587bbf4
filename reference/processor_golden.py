#!/usr/bin/env python3
"""Write golden data: the token ids and pixel values that `Gemma3Processor` makes of texts and pictures.

    pip install -r reference/requirements.txt
    python3 reference/processor_golden.py

writes reference/pictures/prompts.json, with the processor of reference/tiny-vision and, for the tokenizer of the published models,
one of four tokens an image on models/gemma-3-270m (which reference/fetch_models.py brings). Pictures are those that
reference/picture_golden.py wrote.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from transformers import AutoProcessor, AutoTokenizer, Gemma3Processor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

ROOT = Path(__file__).resolve().parent
FOLDER = ROOT / "pictures"
SMALL, LONG, TALL, SQUARE = "rgb-8.png", "palette-640x427.png", "rgb-7x300.png", "exif-6.png"

# Text, pictures, and whether there are crops.
TEXTS = [
    ("<start_of_image>What colour is the circle?", [SMALL], False),
    ("What is <start_of_image> and\n\n<start_of_image>\n?", [SMALL, SQUARE], False),
    ("<start_of_image><start_of_image> <start_of_image>", [TALL, SMALL, LONG], False),
    ("  Look:\n<start_of_image>\n\n\nWell?  ", [SQUARE], False),
    ("Which shape is it? <start_of_image>", [LONG], True),
    ("<start_of_image>, <start_of_image>", [LONG, SMALL], True),
    ("no picture", [], False),
]
REFUSED = [("no place", [SMALL]), ("<start_of_image>", []), ("<start_of_image><start_of_image>", [SMALL])]
MESSAGES = [
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour is it?"}]}],
    [
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which is red?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "image"}]},
    ],
]


def processors():
    yield "tiny-vision", AutoProcessor.from_pretrained(ROOT / "tiny-vision", backend="pil")
    tokens = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    folder = ROOT.parent / "models" / "gemma-3-270m"
    tokenizer = AutoTokenizer.from_pretrained(folder, extra_special_tokens=tokens)
    # What the processor itself decides, whatever this says.
    pictures = Gemma3ImageProcessorPil(size={"height": 28, "width": 28}, do_pan_and_scan=True)
    yield "gemma-3-270m", Gemma3Processor(pictures, tokenizer, image_seq_length=4)


def made(processor, text, files, **options):
    """Ids, and the hash of each image's pixel values."""
    given = {"images": [str(FOLDER / file) for file in files]} if files else {}
    made = processor(text=text, **given, **options)
    values = [np.asarray(v, dtype="<f4").tobytes() for v in made.get("pixel_values", [])]
    ids = [int(i) for i in np.asarray(made["input_ids"]).reshape(-1)]
    return {"pictures": files, "ids": ids, "pixel_values": [hashlib.sha256(v).hexdigest() for v in values]}


def main():
    cases = []
    for name, processor in processors():
        for text, files, crops in TEXTS:
            case = made(processor, text, files, **({"do_pan_and_scan": True} if crops else {}))
            cases.append({"processor": name, "text": text, "pan_and_scan": crops, **case})
        for text, files in REFUSED:
            try:
                made(processor, text, files)
            except ValueError:
                cases.append({"processor": name, "text": text, "pan_and_scan": False, "pictures": files})
            else:
                raise AssertionError(text)
        for messages in MESSAGES if processor.chat_template else []:
            text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            files = [SMALL] * json.dumps(messages).count('"image"')
            case = made(processor, text, files, add_special_tokens=False)
            cases.append({"processor": name, "messages": messages, "pan_and_scan": False, **case})
    lines = ",\n".join(json.dumps(case) for case in cases)
    (FOLDER / "prompts.json").write_text(f"[\n{lines}\n]\n")
    print(f"{len(cases)} prompts")


if __name__ == "__main__":
    main()
