#!/usr/bin/env python3
"""Ask this program and transformers about the same pictures, and load a picture's patch into transformers with PEFT.

    pip install -r reference/requirements.txt
    cargo build --release && python3 reference/check_vision.py > reference/check_vision.txt

First QUESTIONS drawn pictures, each a PNG file that both read and preprocess themselves: how many answers of
reference/tiny-vision are the same to the last token, and how many are right; as the control, how many are the same where
transformers is shown the next question's picture. Then the examples of tiny-vision: the program turns prompt and picture
into a patch for the whole answer, and transformers runs the model with the adapter, or the merged checkpoint, on what is
left: without the picture. Printed is what check_exports.py prints. Run by hand; exits with 1 where an answer differs.
"""

import argparse
import datetime
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from transformers import AutoProcessor, Gemma3ForConditionalGeneration
from transformers.image_utils import load_image

import program as under_test
from check_exports import DTYPES, MODES, Case, report
from check_vision_model import draw
from drawings import KINDS
from program import ROOT, program
from train_vision import prompt

MODEL = ROOT / "reference/tiny-vision"
QUESTIONS, SEED = 100, 2027
# The longest answers are two words and the end.
ANSWER_TOKENS = 3


class PictureCase(Case):
    """A patch whose context has a picture."""

    def __init__(self, folder, model, text, dtype, *options):
        super().__init__(folder, model, text, dtype, *options)
        processor = AutoProcessor.from_pretrained(MODEL, backend="pil")
        picture = load_image(str(options[options.index("--image") + 1]))
        self.pixel_values = processor.image_processor([picture], return_tensors="pt").pixel_values

    @torch.no_grad()
    def contextual(self, model):
        ids = torch.tensor([self.tokens])
        kinds = (ids == model.config.image_token_id).long()
        out = model(input_ids=ids, pixel_values=self.pixel_values, token_type_ids=kinds)
        return out.logits[0, -self.span :].double()


def cut(ids, eos):
    """An answer up to and with the end."""
    return ids[: ids.index(eos) + 1] if eos in ids else ids


@torch.no_grad()
def theirs(model, processor, text, path):
    inputs = processor(images=[[load_image(str(path))]], text=text, return_tensors="pt").to(model.dtype)
    out = model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def ours(text, path, dtype):
    """The program's answer; its list may or may not have the end token that stopped it."""
    options = ("--dtype", dtype, "--max-tokens", ANSWER_TOKENS, "--json")
    return json.loads(program("generate", "--model", MODEL, "--image", path, f"--prompt={text}", *options))["ids"]


def compare_answers(folder):
    """Prints a line for each dtype; whether all answers are the same."""
    rng = np.random.default_rng(SEED)
    asked = [draw(rng, KINDS[number % len(KINDS)]) for number in range(QUESTIONS)]
    paths = [folder / f"{number}.png" for number in range(QUESTIONS)]
    for path, case in zip(paths, asked):
        path.write_bytes(case["png"])
    processor = AutoProcessor.from_pretrained(MODEL, backend="pil")
    eos, good = processor.tokenizer.eos_token_id, True
    for dtype in ("f32", "bf16"):
        model = Gemma3ForConditionalGeneration.from_pretrained(MODEL, dtype=DTYPES[dtype], attn_implementation="eager").eval()
        same = right = control = 0
        for case, path, other in zip(asked, paths, paths[1:] + paths[:1]):
            text = prompt(case["question"], chat=False)
            here = cut(ours(text, path, dtype), eos)
            same += here == cut(theirs(model, processor, text, path), eos)
            control += here == cut(theirs(model, processor, text, other), eos)
            right += processor.tokenizer.decode(here, skip_special_tokens=True) == f" {case['answer']}"
        good &= same == QUESTIONS
        print(f"answers {dtype:5} the same {same}/{QUESTIONS}, right {right}/{QUESTIONS}; "
              f"another picture there: the same {control}/{QUESTIONS}", flush=True)
    return good


def absorb_examples():
    """Prints a line for each dtype and mode."""
    examples = [json.loads(line) for line in (MODEL / "examples/questions.jsonl").read_text().splitlines()]
    for dtype in ("f32", "bf16"):
        for mode, options in MODES.items():
            span = ("--answer-tokens", ANSWER_TOKENS, *options)
            cases = [(example["prompt"], dtype, ("--image", MODEL / "examples" / example["image"], *span), mode == "natural")
                     for example in examples]
            report(f"span {dtype} {mode}, {len(cases)} pictures", MODEL, cases, PictureCase)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default=under_test.PROGRAM, type=Path)
    under_test.PROGRAM = parser.parse_args().program.absolute()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    print(f"{datetime.date.today()}, transformers {transformers.__version__}, peft {peft.__version__}, "
          f"torch {torch.__version__}, {program('--version').strip()}\n")
    with tempfile.TemporaryDirectory() as folder:
        good = compare_answers(Path(folder))
    absorb_examples()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
