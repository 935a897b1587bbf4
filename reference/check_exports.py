#!/usr/bin/env python3
"""Load what `context-patch patch --export` writes into Hugging Face transformers and PEFT, and compare.

    pip install -r reference/requirements.txt
    cargo build --release && python3 reference/check_exports.py > reference/check_exports.txt

For each case the patch is solved by the program. Hugging Face then runs the original model on everything, and the
patched one on what is left, at its positions; printed is the largest difference of a logit over the tokens that
the patch is for, and how many have the same likeliest next token. Run by hand: it needs the real models and an hour;
with --small only the model that is built in, as it is and as the text part of a multimodal one, and a minute. Models named
on the command line are the only ones: the 270M has every case, another family a few.

"found" says that AutoPeftModelForCausalLM, from another folder and with nothing but the adapter, loads the same.
"""

import argparse
import datetime
import os
import shutil
import tempfile
from pathlib import Path

import peft
import torch
import transformers
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

import program as under_test
from program import PROMPTS, ROOT, program, solve

GEMMA = "gemma-3-270m"
OTHERS = ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f64": torch.float32}
# Where a span's tokens are. In "natural" the first token (<bos>, where the model has one) stays.
MODES = {"absolute": (), "natural": ("--keep", "0", "--positions", "natural")}


class Case:
    """A patch that the program solves, in every form it is exported in."""

    def __init__(self, folder, model, text, dtype, *options):
        self.folder, self.dtype = Path(folder), dtype
        patch = self.folder / "native.safetensors"
        exports = [part for kind in ("peft", "merged") for part in ("--export", kind, self.folder / kind)]
        self.saved = solve(model, text, patch, "--dtype", dtype, *exports, *options)
        self.tokens = self.saved["split"]["tokens"]
        self.span = self.saved["split"]["span"]
        self.answer = self.saved["split"]["answer"]

    def load(self, path):
        return AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[self.dtype], attn_implementation="eager").eval()

    def logits(self, model, tokens, positions):
        with torch.no_grad():
            out = model(input_ids=torch.tensor([tokens]), position_ids=torch.tensor([positions]))
        return out.logits[0, -self.span :].double()

    def contextual(self, model):
        return self.logits(model, self.tokens, range(len(self.tokens)))

    def reduced(self, model):
        return self.logits(model, self.saved["reduced_tokens"], self.saved["reduced_positions"])

    def writes_the_answer(self, model):
        """Plain generate from the reduced prompt, without explicit positions."""
        prompt = self.saved["reduced_tokens"][: -self.answer]
        ids = torch.tensor([prompt])
        with torch.no_grad():
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.answer,
                                 min_new_tokens=self.answer, do_sample=False)
        written = out[0, len(prompt) :].tolist()
        same = [a == b for a, b in zip(written, self.tokens[-self.answer :])]
        return (same + [False]).index(False)

    def found(self, want):
        """Whether the adapter alone, loaded from another folder, gives `want`."""
        here = os.getcwd()
        os.chdir("/")
        try:
            model = AutoPeftModelForCausalLM.from_pretrained(
                self.folder / "peft", dtype=DTYPES[self.dtype], attn_implementation="eager").eval()
            return torch.equal(self.reduced(model), want)
        finally:
            os.chdir(here)

    def check(self, base, generate=False):
        """Differences and matching tokens: adapter, merged checkpoint, and neither."""
        model = self.load(base)
        want = self.contextual(model)
        without = self.reduced(model)
        adapted = PeftModel.from_pretrained(model, self.folder / "peft").eval()
        merged = self.load(self.folder / "merged")
        figures = []
        for name, got in [("adapter", self.reduced(adapted)), ("merged", self.reduced(merged)), ("neither", without)]:
            same = (got.argmax(-1) == want.argmax(-1)).sum().item()
            figures.append((name, (got - want).abs().max().item(), same, len(want)))
        written = None
        if generate:
            written = self.writes_the_answer(adapted), self.writes_the_answer(merged), self.answer
        return figures, written


def report(what, model, cases, case=Case):
    """One line: the worst of some cases, (text, dtype, options, whether to generate) each."""
    worst, written = {}, []
    for text, dtype, options, generate in cases:
        with tempfile.TemporaryDirectory() as folder:
            figures, wrote = case(folder, model, text, dtype, *options).check(model, generate)
        for name, linf, same, tokens in figures:
            old = worst.get(name, (0.0, 0, 0))
            # Of the model without any patch the least difference, of the others the largest.
            linf = min(linf, old[0] or linf) if name == "neither" else max(linf, old[0])
            worst[name] = (linf, old[1] + same, old[2] + tokens)
        if wrote:
            written.append(wrote)
    cells = [f"{name} {linf:.1e} {same}/{tokens}" for name, (linf, same, tokens) in worst.items()]
    if written:
        cells.append("generate writes " + ", ".join(f"{a}/{b} of {n}" for a, b, n in written))
    print(f"{what:52} {'; '.join(cells)}", flush=True)


def multimodal(tiny, folder):
    """A Gemma3ForConditionalGeneration whose text part is `tiny`, with a random vision part."""
    text = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    vision = AutoConfig.from_pretrained(ROOT / "reference/checkpoints/multimodal").vision_config
    config = Gemma3Config(text_config=text.config.to_dict(), vision_config=vision, mm_tokens_per_image=1)
    model = Gemma3ForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / file, folder)


def small():
    """The model that is built in, alone and in a multimodal one, named by a path that only holds here."""
    text = "Ann likes plums. Ann likes"
    with tempfile.TemporaryDirectory() as folder:
        tiny, around = Path(folder) / "tiny", Path(folder) / "multimodal"
        shutil.copytree(ROOT / "reference/tiny", tiny)
        multimodal(tiny, around)
        os.chdir(folder)
        for model in (tiny, around):
            # The second changes norms too.
            for solver in ("closed-form", "appendix-b"):
                out = Path(folder) / f"{model.name}-{solver}"
                out.mkdir()
                case = Case(out, model.name, text, "f32", "--solver", solver)
                figures, _ = case.check(model)
                adapted = PeftModel.from_pretrained(case.load(model), case.folder / "peft").eval()
                cells = [f"{name} {linf:.1e} {matching}/{tokens}" for name, linf, matching, tokens in figures]
                cells.append("found" if case.found(case.reduced(adapted)) else "NOT FOUND")
                print(f"{model.name + ' ' + solver:52} {'; '.join(cells)}", flush=True)
        os.chdir(ROOT)


def every_case(model):
    """All solvers, and spans with several settings."""
    # Ten tokens: the last of each prompt, and one a few words into its answer.
    further = [prompt + program("generate", "--model", model, "--prompt", prompt, "--max-tokens", 3).rstrip("\n")
               for prompt in PROMPTS]
    ten = PROMPTS + further
    report("closed-form f32, 10 tokens", model, [(text, "f32", (), False) for text in ten])
    report("closed-form f64", model, [(text, "f64", (), False) for text in PROMPTS[:3]])
    for gain in (1, 100):
        report(f"closed-form f32 gain {gain}", model,
               [(text, "f32", ("--gain", gain), False) for text in PROMPTS[:3]])
    for solver in ("theorem-1", "appendix-b"):
        report(f"{solver} f32", model, [(text, "f32", ("--solver", solver), False) for text in PROMPTS[:3]])
    for solver in ("theorem-1", "appendix-b", "closed-form"):
        report(f"{solver} bf16", model,
               [(text, "bf16", ("--solver", solver, "--apply", "materialise"), False) for text in PROMPTS[:3]])
    default, one = (12, 10, "overlay"), (12, 1, "overlay")
    settings_of = {
        "f64": [default],
        "f32": [default, (12, 10, "materialise"), one, (6, 10, "overlay"), (18, 10, "overlay")],
        "bf16": [default, one, (12, 1, "materialise")],
    }
    for dtype, settings in settings_of.items():
        for mode, options in MODES.items():
            for layers, gain, form in settings:
                span = ("--answer-tokens", 24, "--layers", layers, "--gain", gain, "--apply", form, *options)
                report(f"span {dtype} {mode}, {layers} layers, gain {gain}, {form}", model,
                       [(text, dtype, span, mode == "natural") for text in PROMPTS])


def few_cases(model):
    """What holds without a norm behind the MLP, as it is by default."""
    for dtype, form in (("f32", "overlay"), ("bf16", "materialise")):
        for solver, keep in (("closed-form", ""), ("closed-form", "0"), ("theorem-5", "")):
            options = ("--solver", solver, "--keep", keep, "--apply", form)
            kept = "the first token kept, " if keep else ""
            report(f"{solver} {dtype}, {kept}{form}", model, [(text, dtype, options, False) for text in PROMPTS[:3]])
        for mode, options in MODES.items():
            span = ("--answer-tokens", 24, "--apply", form, *options)
            report(f"span {dtype} {mode}, {form}", model, [(text, dtype, span, mode == "natural") for text in PROMPTS])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, help="Hugging Face folders; all three real models where none is named")
    parser.add_argument("--program", default=under_test.PROGRAM, type=Path)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    under_test.PROGRAM = arguments.program.absolute()
    print(f"{datetime.date.today()}, transformers {transformers.__version__}, peft {peft.__version__}, "
          f"torch {torch.__version__}, {program('--version').strip()}")
    print("largest difference of a logit from Hugging Face's own contextual run, and tokens with the same top-1;")
    print("'neither' is the least difference without adapter and merge\n")
    if arguments.small or not arguments.models:
        small()
    if arguments.small:
        return
    for model in arguments.models or [ROOT / "models" / name for name in (GEMMA, *OTHERS)]:
        print(f"\n{model.name}:")
        (every_case if model.name == GEMMA else few_cases)(model)


if __name__ == "__main__":
    main()
