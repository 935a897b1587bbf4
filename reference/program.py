"""The program under test and the paper's prompts, for the scripts that check what it exports."""

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/release/context-patch"

PROMPTS = [
    "Write a single-sentence weather forecast for Mars, from the perspective of a slightly annoyed robot:",
    "Constraint: No 'e's. Topic: The meaning of life. Length: Exactly 20 words. Write:",
    "Explain what a 'bug' is in computer programming, but explain it to a 16th-century medieval peasant. "
    "Use 20 words or less:",
    "Topic: Three siblings named Jack, Fred, and Alice. Task: Write one 5-7-5 haiku about them:",
    "We can absorb the impact of a prompt for a modern language model such as Gemma into the MLP weights. "
    "Write a two-line rhyming couplet about this fact:",
]


def program(*arguments, codes=(0,)):
    """What the program prints."""
    done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode not in codes:
        raise SystemExit(f"{' '.join(map(str, arguments))}: {done.stderr}")
    return done.stdout


def solve(model, text, patch, *options):
    """Solves a patch into a file; returns what `inspect --json` says of it.

    A patch that breaks its bound (exit code 1) is one all the same: the checks say how it does.
    """
    program("patch", "--model", model, "--context", text, "--output", patch, *options, codes=(0, 1))
    return json.loads(program("inspect", "--json", patch))
