#!/usr/bin/env python3
"""The models and a patch in NumPy float64: an oracle that shares no code with the crate, nor with transformers.

    python reference/numpy_reference.py all             make every golden file that can be made here
    python reference/numpy_reference.py all --check     make them again and compare with the committed ones
    python reference/numpy_reference.py all --only tiny
    python reference/numpy_reference.py golden    --model DIR --ids FILE --output FILE.safetensors
    python reference/numpy_reference.py forward   --model DIR --ids FILE --output FILE.safetensors
    python reference/numpy_reference.py check     --model DIR --ids FILE --trace FILE.safetensors
    python reference/numpy_reference.py patch     --model DIR --ids FILE [--absorb 1:9]

It needs NumPy and nothing else. FILE holds token ids: JSON (`[2, 818]`, `{"ids": [...]}`, or a list or
`"prompts"` of such, of which `--prompt NAME` chooses one), or a .safetensors file with a tensor `ids`.

`check` is for the output of

    context-patch trace --model DIR --ids FILE --dtype f64 --output TRACE.safetensors

It prints L-infinity for every tensor whose name is known here, and exits with 1 when one is above
1e-9 (`--tolerance`). `forward` writes the same tensors, as computed here. What computes them is in oracle/.

Everything is float64: weights are widened exactly, and eps, the embedding scale, the RoPE
frequencies, their sines and cosines and every sum are float64. That is deliberately not what
Hugging Face computes in float64 mode (its RMSNorm and its RoPE pass through float32, so it is 1e-7 to 1e-5 off; where
there is neither, as in GPT-2, 1e-14). Against the same file run in 80-bit arithmetic, logits and intermediates of the
small Gemma 3 models are within 1e-13 and their delta m, which divides by whatever n(d_C) is, within 1e-10.

Notation. The paper is Goldwaser, Munn, Gonzalvo, Dherin, "Equivalence of Context and Parameter
Updates in Modern Transformer Blocks", arXiv 2511.17864. `_ctx` is its subscript C (the contextual
pass, all tokens); no suffix is the reduced pass (the tokens Y are gone, the others keep their
absolute positions).

What a golden file for a small model (`golden/NAME.f64.safetensors`) holds, T tokens, V vocabulary
entries, H hidden, F ffn, all F64 unless said otherwise:

    ids                      I64 [T]
    logits_f64               [T, V]     the contextual pass
    and, for P = `patch` (only the last token is left) and P = `keep_first` (the first and the last):
    P.logits                 [V]        last token, patched reduced pass
    P.linf                   []         max |P.logits - logits_f64[T - 1]|
    P.linf_no_patch          []         the same for a reduced pass with the checkpoint's weights,
    P.linf_without_OUTER     []         with the patch above less what it does to g in every layer,
    P.linf_without_INNER     []         and less what it does to f; absent where it does nothing

Where the MLP has a post-norm, the patch is Theorem 1's, OUTER is `dm` and INNER `gate_up`:

    P.LAYER.z                [H]        z of the last token in the patched reduced pass
    P.LAYER.gate_u           [F]        delta W_gate = gate_u z^T  (1 / |z|^2 is inside gate_u)
    P.LAYER.up_u             [F]        delta W_up   = up_u z^T
    P.LAYER.dm               [H]        what the scale 1 + w (or w) of post_feedforward_layernorm gains

Elsewhere it is Theorem 5's, OUTER is `outer` and INNER `inner`. For every changed linear map, by its module's name, say
`mlp.down_proj`, whose matrix [out, in] gains u v^T:

    P.LAYER.NAME.u           [out]
    P.LAYER.NAME.v           [in]

That of a small model that sees, `golden/NAME.images.f64.safetensors`, holds of the pictures and the prompts of
`golden/NAME.images.safetensors` what the tower and the projector make of each picture, and all of the above for each
PROMPT, its image absorbed with the rest. An image token is not kept, so a prompt that begins with one has no `keep_first`:

    tower_f64                [pictures, patches, hidden of the tower]
    projector_f64            [pictures, image tokens, H]
    PROMPT.ids, PROMPT.logits_f64, PROMPT.patch.logits, ...

That of a real model, `golden/gemma-3-270m.f64.safetensors` say, holds, for each PROMPT of gemma-3-270m.json, the contextual
logits of its last position, and how far from them the reduced ones are (all over the whole vocabulary):

    PROMPT.ids               I64 [T]
    PROMPT.logits_f64        [V / 64]   vocabulary entries 0, 64, 128, ...
    PROMPT.top_ids           I64 [32]   the largest logits, largest first
    PROMPT.top_logits        [32]
    PROMPT.log_sum_exp       []
    PROMPT.linf, PROMPT.linf_no_patch, PROMPT.linf_without_OUTER, PROMPT.linf_without_INNER
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from oracle.files import read_ids, read_prompts, read_safetensors, write_safetensors
from oracle.model import Model, forward, trace
from oracle.patch import linf, outcome
from oracle.vision import Vision

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden"
MODELS = HERE.parent / "models"
REAL = ["gemma-3-270m", "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"]


# ----------------------------------------------------------------------------------------------
# Golden data.

LARGE_VOCABULARY = 10_000


def controls(model, solved):
    """{name in a golden file: how far the reduced logits are from the contextual ones}."""
    family = model.family
    inner, outer = ("gate_up", "dm") if family.outer_norm else ("inner", "outer")
    found = {
        "linf": solved.linf,
        "linf_no_patch": solved.linf_no_patch,
        f"linf_without_{outer}": solved.linf_without_outer,
    }
    return found if family.parallel else found | {f"linf_without_{inner}": solved.linf_without_inner}


def factors(family, patch):
    """{name in a golden file: array} of one layer's patch."""
    if not family.outer_norm:
        changes = patch.changes().items()
        return {f"{name}.{which}": factor for name, change in changes for which, factor in zip("uv", change)}
    gate_u, z = patch.inner[family.gate]
    up_u, _ = patch.inner[family.up]
    return {"z": z, "gate_u": gate_u, "up_u": up_u, "dm": patch.outer[family.outer_norm]}


def golden_small(model, ids):
    """See the top of this file. For models whose logits are few."""
    tensors = {"ids": np.array(ids), "logits_f64": model.logits(forward(model, ids))}
    cases = {"patch": np.arange(len(ids) - 1)}
    if ids[0] != model.config.image_token:
        cases["keep_first"] = np.arange(1, len(ids) - 1)
    for case, absorbed in cases.items():
        solved = outcome(model, ids, absorbed)
        for i, patch in enumerate(solved.patches):
            tensors |= {f"{case}.{i}.{name}": array for name, array in factors(model.family, patch).items()}
        tensors[f"{case}.logits"] = solved.logits
        tensors |= {f"{case}.{name}": value for name, value in controls(model, solved).items()}
        report(f"  {case}", model, solved)
    return tensors


def golden_large(model, prompts):
    """See the top of this file. For a real vocabulary: the last position of several prompts."""
    tensors = {}
    for name, ids in prompts.items():
        started = time.monotonic()
        solved = outcome(model, ids, np.arange(len(ids) - 1))
        logits = solved.logits_ctx
        top = np.argsort(-logits, kind="stable")[:32]
        tensors[f"{name}.ids"] = np.array(ids)
        tensors[f"{name}.logits_f64"] = logits[::64]
        tensors[f"{name}.top_ids"] = top
        tensors[f"{name}.top_logits"] = logits[top]
        tensors[f"{name}.log_sum_exp"] = logits.max() + np.log(np.sum(np.exp(logits - logits.max())))
        tensors |= {f"{name}.{control}": value for control, value in controls(model, solved).items()}
        report(f"  {name}, {len(ids)} tokens, {time.monotonic() - started:.1f} s", model, solved)
    return tensors


def golden_images(directory, given):
    """For models that see, of the pictures and prompts in `given`."""
    model, vision = Model(directory), Vision(directory)
    tower = vision.tower(given["pixel_values"].f64())
    features = vision.project(tower)
    tensors = {"tower_f64": tower, "projector_f64": features}
    for name in (key.removesuffix(".ids") for key in given if key.endswith(".ids")):
        ids, images = (given[f"{name}.{which}"].raw for which in ("ids", "images"))
        model.look(ids, np.concatenate(features[images]))
        print(f"  {name}: {len(ids)} tokens, pictures {images.tolist()}")
        tensors |= {f"{name}.{key}": array for key, array in golden_small(model, ids.tolist()).items()}
    return tensors


def report(title, model, solved):
    found = controls(model, solved).items()
    print(f"{title}: " + ", ".join(f"{name} {value:.3g}" for name, value in found), flush=True)


def golden_sources():
    """(name, model directory, ids file) of every golden file that can be made here."""
    small = sorted((HERE / "checkpoints").glob("*/")) + [HERE / "tiny", HERE / "tiny-vision"]
    for directory in small:
        given = [GOLDEN / f"{directory.name}{suffix}.safetensors" for suffix in ("", ".images")]
        given = [path for path in given if path.exists() and (directory / "config.json").exists()]
        if not given:
            print(f"{directory.name}: no checkpoint, or no golden/{directory.name}.safetensors with ids")
        for path in given:
            yield path.stem, directory, path
    for name in REAL:
        directory, ids = MODELS / name, GOLDEN / f"{name}.json"
        if (directory / "config.json").exists() and ids.exists():
            yield name, directory, ids
        else:
            print(f"{name}: not here, or no {ids.name}")


def make_golden(directory, ids):
    if ids.name.endswith(".images.safetensors"):
        return golden_images(directory, read_safetensors(ids))
    model, prompts = Model(directory), read_prompts(ids)
    if model.head.shape[0] > LARGE_VOCABULARY:
        return golden_large(model, prompts)
    return golden_small(model, next(iter(prompts.values())))


def compare_with_hugging_face(name, tensors):
    """Hugging Face's logits, where golden/NAME.safetensors has them: about 1e-5 off in float32."""
    path = GOLDEN / f"{name}.safetensors"
    for key, tensor in read_safetensors(path).items() if path.exists() else ():
        ours = key.rpartition("_")[0] + "_f64"
        if ours in tensors:
            distance = linf(tensor.f64(), tensors[ours])
            print(f"  Hugging Face, {key}: L-infinity {distance:.2g}")


# ----------------------------------------------------------------------------------------------
# Commands.


def compare(ours, theirs, tolerance):
    """Print L-infinity by name; true when nothing is above the tolerance."""
    good = compared = 0
    print(f"{'L-infinity':>12} {'largest |x|':>12}  name")
    for name, tensor in theirs.items():
        if name not in ours:
            print(f"{'-':>12} {'-':>12}  {name}: not a name of this reference")
            continue
        reference = np.asarray(ours[name], dtype=np.float64)
        if np.prod(tensor.shape) != reference.size:
            print(f"{'shape':>12} {'-':>12}  {name}: {list(tensor.shape)}, here {list(reference.shape)}")
            compared += 1
            continue
        distance = linf(tensor.f64().reshape(reference.shape), reference)
        within = distance <= tolerance  # false for NaN
        print(f"{distance:12.3g} {np.abs(reference).max():12.6g}  {name}{'' if within else '   <-- ABOVE'}")
        compared += 1
        good += within
    missing = [name for name in ours if name not in theirs]
    if missing:
        print(f"not in the file: {len(missing)} of {len(ours)} names, such as {', '.join(missing[:4])}")
    print(f"{good} of {compared} tensors within {tolerance:g}")
    return compared > 0 and good == compared


def command_all(arguments):
    good = True
    for name, directory, ids in golden_sources():
        if arguments.only not in (None, name):
            continue
        print(f"{name}: {directory.relative_to(HERE.parent)}")
        tensors = make_golden(directory, ids)
        compare_with_hugging_face(name, tensors)
        path = GOLDEN / f"{name}.f64.safetensors"
        if arguments.check:
            good &= compare_golden(tensors, read_safetensors(path), arguments.tolerance)
        else:
            write_safetensors(path, tensors)
            print(f"  wrote {path.relative_to(HERE.parent)}, {path.stat().st_size} bytes")
    return good


def compare_golden(ours, theirs, tolerance):
    """Relative to the largest entry where that is above one: dm reaches 1e7."""
    worst, where = 0.0, "nothing"
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs or theirs[name].shape != np.shape(ours[name]):
            print(f"  {name}: missing or of another shape")
            return False
        distance = linf(theirs[name].f64(), ours[name]) / max(1.0, np.abs(ours[name]).max())
        if not distance <= worst:
            worst, where = distance, name
    print(f"  worst difference from the committed file {worst:.2g} at {where}")
    return bool(worst <= tolerance)


def command_golden(arguments):
    write_safetensors(arguments.output, make_golden(arguments.model, arguments.ids))
    return True


def command_forward(arguments):
    record = trace(Model(arguments.model), read_ids(arguments.ids, arguments.prompt))
    write_safetensors(arguments.output, record)
    return True


def command_check(arguments):
    ours = trace(Model(arguments.model), read_ids(arguments.ids, arguments.prompt))
    return compare(ours, read_safetensors(arguments.trace), arguments.tolerance)


def command_patch(arguments):
    ids = read_ids(arguments.ids, arguments.prompt)
    start, stop = (int(end) for end in (arguments.absorb or f"0:{len(ids) - 1}").split(":"))
    model = Model(arguments.model)
    solved = outcome(model, ids, np.arange(start, stop))
    report(f"{len(ids)} tokens, {start}:{stop} absorbed", model, solved)
    print("top-1", "equal" if solved.logits.argmax() == solved.logits_ctx.argmax() else "DIFFERS")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, run, *options):
        sub = commands.add_parser(name)
        sub.set_defaults(run=run)
        for option in options:
            sub.add_argument(option, required=True, type=Path)
        return sub

    sub = command("all", command_all)
    sub.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    sub.add_argument("--tolerance", type=float, default=1e-9)
    sub.add_argument("--only", metavar="NAME", help="one of them, such as tiny or window-3")
    command("golden", command_golden, "--model", "--ids", "--output")
    for sub in (
        command("forward", command_forward, "--model", "--ids", "--output"),
        command("check", command_check, "--model", "--ids", "--trace"),
        command("patch", command_patch, "--model", "--ids"),
    ):
        sub.add_argument("--prompt", help="which prompt of the ids file, the first one if absent")
    commands.choices["check"].add_argument("--tolerance", type=float, default=1e-9)
    sub.add_argument("--absorb", help="positions START:STOP, all but the last token if absent")

    arguments = parser.parse_args()
    return 0 if arguments.run(arguments) else 1


if __name__ == "__main__":
    sys.exit(main())
