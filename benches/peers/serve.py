"""What the Python workers of benches/peers.py share: commands on standard input, a line of JSON back for each."""

import json
import sys
import time


def say(**reply):
    """One line of JSON on standard output."""
    print(json.dumps(reply), flush=True)


def serve(engine, detail):
    """Answers commands until the input ends.

    `engine.fresh()` forgets the sequence, `engine.step(ids)` takes in more of it, and `engine.greedy()` is the
    token of the largest logit after that.
    """
    say(detail=detail)
    for line in sys.stdin:
        command = json.loads(line)
        if command["run"] == "decode":
            decode(engine, command["ids"], command["tokens"])
        elif command["run"] == "prefill":
            prefill(engine, command["ids"])
        else:
            prefill(engine, engine.encode(command["text"]))


def decode(engine, ids, count):
    """Greedy tokens, each put back in; taking in the prompt before them is not timed."""
    engine.fresh()
    engine.step(ids)
    tokens = []
    start = time.perf_counter()
    for _ in range(count):
        tokens.append(engine.greedy())
        engine.step(tokens[-1:])
    say(seconds=time.perf_counter() - start, tokens=tokens)


def prefill(engine, ids):
    """The logits after a prompt."""
    engine.fresh()
    start = time.perf_counter()
    engine.step(ids)
    seconds = time.perf_counter() - start
    say(seconds=seconds, tokens=[engine.greedy()])
