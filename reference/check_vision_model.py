#!/usr/bin/env python3
"""Ask the tiny model that sees about pictures that it was not trained on.

    pip install -r reference/requirements.txt
    python3 reference/check_vision_model.py > reference/tiny-vision/accuracy.txt

Pictures of a seed of its own, of several sizes, go through a PNG file and the processor of transformers, and `generate`
answers greedily; an answer counts when it is right to the end token. Then the same questions without a picture, and with
another's, which say what can be guessed. Also writes tiny-vision/examples: EXAMPLES of these pictures, and in
questions.jsonl what was asked and what is right. Exits with 1 where less than LEAST of all questions are right.
"""

import argparse
import io
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoProcessor, Gemma3ForConditionalGeneration

from drawings import KINDS, Scene, paint
from train_vision import SIZES, ask, prompt

FOLDER = Path(__file__).resolve().parent / "tiny-vision"
SEED = 2026
OF_A_KIND = 300
EXAMPLES = 10
LEAST = 0.98


def draw(rng, kind):
    """{kind, question, answer, png} of a new picture that has such a question."""
    while True:
        scene = Scene.draw(rng, rng.integers(1, 5))
        asked = ask(scene, kind, rng)
        if asked:
            file = io.BytesIO()
            Image.fromarray(paint(scene, rng, *SIZES[rng.integers(len(SIZES))])).save(file, "png", optimize=True)
            return {"kind": kind, "question": asked[0], "answer": asked[1], "png": file.getvalue()}


@torch.no_grad()
def replies(model, processor, cases, chat):
    """What the model says to each (question, png); without a picture where png is None."""
    texts = [prompt(question, chat, "<start_of_image>" if png else "") for question, png in cases]
    said = [None] * len(cases)
    groups = defaultdict(list)
    for index, text in enumerate(texts):
        groups[len(processor.tokenizer(text).input_ids)].append(index)
    for indices in groups.values():  # of one length, so that none is padded
        pictures = [[Image.open(io.BytesIO(cases[i][1])).convert("RGB")] for i in indices if cases[i][1]]
        inputs = processor(images=pictures or None, text=[texts[i] for i in indices], return_tensors="pt")
        out = model.generate(**inputs.to(model.dtype), max_new_tokens=4, do_sample=False)
        for index, tokens in zip(indices, out[:, inputs.input_ids.shape[1] :]):
            said[index] = processor.tokenizer.decode(tokens).split("<pad>")[0]
    return said


def right(said, asked, chat):
    """{kind: share that is right}."""
    good = Counter()
    for reply, case in zip(said, asked):
        good[case["kind"]] += reply == (f"{case['answer']}<end_of_turn>" if chat else f" {case['answer']}<eos>")
    return {kind: good[kind] / OF_A_KIND for kind in KINDS}


def write_examples(asked):
    folder = FOLDER / "examples"
    folder.mkdir(exist_ok=True)
    lines = []
    for number, case in enumerate(asked[:EXAMPLES]):
        name = f"{number:02}.png"
        (folder / name).write_bytes(case["png"])
        lines.append({"image": name, "prompt": prompt(case["question"], False), "answer": f" {case['answer']}"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    rng = np.random.default_rng(SEED)
    asked = [draw(rng, kind) for _ in range(OF_A_KIND) for kind in KINDS]
    shown = [(case["question"], case["png"]) for case in asked]
    unseen = [(case["question"], None) for case in asked]
    swapped = [(case["question"], other["png"]) for case, other in zip(asked, asked[1:] + asked[:1])]
    processor = AutoProcessor.from_pretrained(FOLDER, backend="pil")
    models = {
        name: Gemma3ForConditionalGeneration.from_pretrained(FOLDER, dtype=dtype, attn_implementation="eager").eval()
        for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16))
    }
    print(f"transformers {transformers.__version__}, torch {torch.__version__}: {len(asked)} pictures, seed {SEED}; shares right\n")
    print(f"{'':34}{'all':>7}" + "".join(f"{kind:>10}" for kind in KINDS))
    good = True
    for title, dtype, chat, cases in (
        ("f32", "f32", False, shown),
        ("bf16", "bf16", False, shown),
        ("f32, as a chat", "f32", True, shown),
        ("bf16, as a chat", "bf16", True, shown),
        ("f32, without a picture", "f32", False, unseen),
        ("f32, another question's picture", "f32", False, swapped),
    ):
        shares = right(replies(models[dtype], processor, cases, chat), asked, chat)
        mean = sum(shares.values()) / len(shares)
        good &= cases is not shown or mean >= LEAST
        print(f"{title:34}{mean:7.4f}" + "".join(f"{share:10.4f}" for share in shares.values()), flush=True)
    write_examples(asked)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
