#!/usr/bin/env python3
"""Ask this program and transformers about the same pictures, and load a picture's patch into transformers with PEFT.

    pip install -r reference/requirements.txt
    cargo build --release && python3 reference/check_vision.py > reference/check_vision.txt

First QUESTIONS drawn pictures, each a PNG file that both read and preprocess themselves: how many answers of
reference/tiny-vision are the same to the last token, and how many are right; as the control, how many are the same where
transformers is shown the next question's picture. Then the program turns prompt and picture of the examples of tiny-vision
into a patch, and transformers runs the model with the adapter, or the merged checkpoint, on what is left: without the
picture. Printed is what check_exports.py prints: first of patches for the answer's first token, then of spans, patches for
whole answers. These are a word or two, so longer spans are tried on a random model of the shape, whose answers about the same
pictures mean nothing. Run by hand; exits with 1 where an answer differs.
"""

import argparse
import datetime
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from transformers import AutoConfig, AutoProcessor, Gemma3ForConditionalGeneration
from transformers.image_utils import load_image

import program as under_test
from check_exports import DTYPES, MODES, Case, report
from check_vision_model import draw
from drawings import KINDS
from make_checkpoints import random_model
from program import ROOT, program
from train_vision import prompt

MODEL = ROOT / "reference/tiny-vision"
QUESTIONS, SEED = 100, 2027
# The longest answers are two words and the end.
ANSWER_TOKENS = 3
SPANS, SPAN_TOKENS = 4, 8


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


@torch.no_grad()
def theirs(model, processor, text, path):
    """The answer of transformers, the token that ends it left out, as the program does."""
    inputs = processor(images=[[load_image(str(path))]], text=text, return_tensors="pt").to(model.dtype)
    out = model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    ids = out[0, inputs["input_ids"].shape[1] :].tolist()
    eos = processor.tokenizer.eos_token_id
    return ids[: ids.index(eos)] if eos in ids else ids


def ours(text, path, dtype):
    """The answer of the program."""
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
    good = True
    for dtype in ("f32", "bf16"):
        model = Gemma3ForConditionalGeneration.from_pretrained(MODEL, dtype=DTYPES[dtype], attn_implementation="eager").eval()
        same = right = control = 0
        for case, path, other in zip(asked, paths, paths[1:] + paths[:1]):
            text = prompt(case["question"], chat=False)
            here = ours(text, path, dtype)
            same += here == theirs(model, processor, text, path)
            control += here == theirs(model, processor, text, other)
            right += processor.tokenizer.decode(here) == f" {case['answer']}"
        good &= same == QUESTIONS
        print(f"answers {dtype:5} the same {same}/{QUESTIONS}, right {right}/{QUESTIONS}; "
              f"another picture there: the same {control}/{QUESTIONS}", flush=True)
    return good


def write_random(folder):
    """A model of tiny-vision's shape with eight layers, random, the scales of its norms behind the MLP about 4."""
    config = AutoConfig.from_pretrained(MODEL)
    text = config.text_config
    text.num_hidden_layers, text.layer_types = 8, text.layer_types * 2
    model = random_model(config, np.random.default_rng(SEED)).float()
    model.get_input_embeddings().weight.data[config.image_token_id] = 0.0  # so that it never writes this one
    for layer in model.model.language_model.layers:
        layer.post_feedforward_layernorm.weight.data += 3.0
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        shutil.copy(MODEL / name, folder)


def absorb_examples(folder):
    """Prints a line for each kind of patch."""
    examples = [json.loads(line) for line in (MODEL / "examples/questions.jsonl").read_text().splitlines()]
    examples = [(example["prompt"], ("--image", MODEL / "examples" / example["image"])) for example in examples]
    for dtype, form in (("f32", "overlay"), ("bf16", "materialise")):
        cases = [(text, dtype, (*image, "--apply", form), False) for text, image in examples]
        report(f"{MODEL.name} closed-form {dtype}, {len(cases)} pictures", MODEL, cases, PictureCase)
    write_random(folder)
    absorb_spans(MODEL, examples, ANSWER_TOKENS)
    absorb_spans(folder, examples[:SPANS], SPAN_TOKENS)


def absorb_spans(folder, examples, tokens):
    """Prints a line for each kind of span."""
    for dtype, form in (("f32", "overlay"), ("f32", "materialise"), ("bf16", "materialise")):
        for mode, options in MODES.items():
            span = ("--answer-tokens", tokens, "--apply", form, *options)
            cases = [(text, dtype, (*image, *span), mode == "natural") for text, image in examples]
            title = f"{folder.name} span {dtype} {mode}, {form}, {len(examples)} pictures"
            report(title, folder, cases, PictureCase)


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
        absorb_examples(Path(folder) / "random")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
