#!/usr/bin/env python3
"""Run llama.cpp, Hugging Face transformers and candle beside ours on a real model, in turn, and write what they take.

    python3 reference/fetch_models.py
    pip install -r reference/requirements.txt llama-cpp-python==0.3.36    (in an environment of its own)
    python3 benches/peers.py                                              (Gemma 3 270M)
    python3 benches/peers.py --model models/smollm2-135m-instruct
    python3 benches/peers.py --model models/qwen2.5-coder-0.5b-instruct

builds the two Rust workers, writes the checkpoint as GGUF to a temporary folder (three times its size), and writes
benches/peers/DATE-MODEL.csv and, on standard output, the tables of benches/peers.md, which says what is measured.
Linux only: it stops the workers that are not asked, and reads their memory from /proc.
"""

import argparse
import contextlib
import csv
import datetime
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benches/peers"
sys.path.insert(0, str(ROOT / "reference"))

from program import PROGRAM, PROMPTS  # noqa: E402

DEFAULT_MODEL = ROOT / "models/gemma-3-270m"
# What candle's worker can run.
CANDLE_MODEL_TYPE = "gemma3_text"

PROMPT, TOKENS, PREFILLS = 32, 64, (128, 512)
TEXT = PROMPTS[2]
# The unit of what was measured in pairs.
RATIO = "times"
COLUMNS = ("model", "engine", "dtype", "threads", "measure", "unit", "median", "lowest", "highest", "rounds")


class Failure(Exception):
    """Something that the user has to read; ends the script with exit status 1."""


class Checkpoint:
    """A Hugging Face folder, and what the workers are asked in tokens of its vocabulary."""

    def __init__(self, folder):
        if not (folder / "config.json").is_file():
            raise Failure(f"{folder} has no config.json; python3 reference/fetch_models.py brings the real models")
        config = json.loads((folder / "config.json").read_text())
        self.folder, self.model_type = folder.resolve(), config["model_type"]
        self.name = self.folder.name
        # With Gemma's vocabulary, the prompt of benches/speed.rs.
        among = min(200_000, config["vocab_size"] - 2)
        ids = [2 + i * 7919 % among for i in range(max(PREFILLS))]
        self.decode = {"run": "decode", "ids": ids[:PROMPT], "tokens": TOKENS}
        self.prefills = {count: {"run": "prefill", "ids": ids[:count]} for count in PREFILLS}
        self.first = {"ids": {"run": "prefill", "ids": ids[:PROMPT]}, "text": {"run": "text", "text": TEXT}}

    def __str__(self):
        weights = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        return f"{self.name}, {self.model_type}, {weights / 1e6:.0f} MB of weights"


@dataclass(frozen=True)
class Engine:
    """How a worker is started; the number of threads follows as the last argument."""

    name: str
    dtype: str
    command: tuple
    # Whether it can take a text.
    text: bool = True

    def __str__(self):
        return f"{self.name} {self.dtype}"


class Worker:
    """A running engine, which is stopped unless it is asked something."""

    def __init__(self, engine, threads):
        # Every library that takes its number of threads from the environment gets the same.
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, str(threads))
        command = [*map(str, engine.command), str(threads)]
        self.engine = engine
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.detail = self.read()["detail"]

    def read(self):
        """Its next line."""
        line = self.process.stdout.readline()
        if not line:
            raise Failure(f"the worker of {self.engine} ended")
        return json.loads(line)

    def ask(self, **command):
        """Its answer to a command."""
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.read()

    # Threads that wait for work may spin; a stopped process does not.
    def stop(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def ask_stopped(self, **command):
        """The same of a worker that is stopped before and after."""
        self.go_on()
        reply = self.ask(**command)
        self.stop()
        return reply

    def peak(self):
        """The most memory it has had, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024

    def close(self):
        """Ends it, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def call(*command, **options):
    """What a command prints."""
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, **options)
    if done.returncode != 0:
        raise Failure(f"{Path(command[0]).name} failed with status {done.returncode}")
    return done.stdout.strip()


# ---- the engines ------------------------------------------------------------------------------------


def build(engines, flags):
    """Builds the Rust workers."""
    cargo = ("cargo", "build", "--release", "--quiet", "--locked", "--target-dir")
    call(*cargo, ROOT / "target", "--bin", "context-patch", "--example", "peer", cwd=ROOT)
    if "candle" in engines:
        environment = os.environ | {"RUSTFLAGS": flags}
        call(*cargo, ROOT / "target/candle", cwd=HERE / "candle", env=environment)


def copy_in_large_pieces(source, copy):
    """Writes a file as `convert` does; `shutil.copy` writes pieces of 64 KiB, which lie in pages that are no larger."""
    with open(source, "rb") as file, open(copy, "wb") as out:
        while piece := file.read(1 << 24):
            out.write(piece)
    return Path(copy)


def make_engines(arguments, model, work):
    """Those that were asked for, ours first."""
    # A file that was just written may lie in large pages of the page cache, which are read faster when mapped; so all are.
    model = Path(shutil.copytree(model, Path(work) / "model", copy_function=copy_in_large_pieces))
    python = arguments.llama_python
    ours, level = ROOT / "target/release/examples/peer", arguments.level
    if arguments.gguf:
        quantised = copy_in_large_pieces(arguments.gguf, Path(work) / "model.gguf")
        engines = [Engine("ours", "f32", (ours, quantised, "f32", "mapped", level)), Engine("ours", "bf16", (ours, model, "bf16", "mapped", level))]
        # Its products are of 8 bits, its cache of F16.
        return engines + [Engine("llama.cpp", "8 bits", (python, HERE / "worker_llama.py", quantised, "8 bits"), text=False)]
    engines = [Engine("ours", dtype, (ours, model, dtype, "mapped", level)) for dtype in ("f32", "bf16")]
    engines += [Engine("ours, read", dtype, (ours, model, dtype, "read", level)) for dtype in ("f32", "bf16")]
    for dtype in ("f32", "bf16"):
        if "llama.cpp" in arguments.engines:
            path = Path(work) / f"{dtype}.gguf"
            call(PROGRAM, "convert", model, path, "--dtype", dtype)
            # The GGUF file has no vocabulary.
            engines.append(Engine("llama.cpp", dtype, (python, HERE / "worker_llama.py", path, dtype), text=False))
        if "transformers" in arguments.engines:
            engines.append(Engine("transformers", dtype, (sys.executable, HERE / "worker_hf.py", model, dtype)))
    if "candle" in arguments.engines:
        engines.append(Engine("candle", "f32", (ROOT / "target/candle/release/candle-worker", model)))
    return engines


# ---- measuring --------------------------------------------------------------------------------------


class Record:
    """What was measured of a model: by engine, threads and measure, the value of every round."""

    def __init__(self, model):
        self.model, self.values, self.notes = model, {}, []

    def add(self, engine, threads, measure, unit, value):
        key = (engine.name, engine.dtype, threads, measure, unit)
        self.values.setdefault(key, []).append(value)

    def note(self, text):
        """Something to read, which goes to the file and is shown at once."""
        if text not in self.notes:
            self.notes.append(text)
            print(text, file=sys.stderr, flush=True)

    def rows(self):
        """Those of the file."""
        for key, values in self.values.items():
            shown = [f"{value:.4g}" for value in (statistics.median(values), min(values), max(values))]
            yield dict(zip(COLUMNS, (self.model, *key, *shown, len(values))))


def check(workers, checkpoint, threads, record):
    """Every worker's tokens, which the rounds have to repeat; says where they are not ours in f32."""
    commands = [checkpoint.decode, *checkpoint.prefills.values()]
    tokens = {worker: [worker.ask_stopped(**command)["tokens"] for command in commands] for worker in workers}
    decoded, *prefilled = tokens[workers[0]]
    for worker in workers[1:]:
        mine, *next_ones = tokens[worker]
        text = f"{worker.engine}, threads {threads}: {agreement(mine, decoded)}"
        if next_ones != prefilled:
            text += f"; after the prefills {next_ones}, ours {prefilled}"
        record.note(text)
    return tokens


def agreement(mine, wanted):
    """How far the tokens are those of ours in f32."""
    for i, (token, other) in enumerate(zip(mine, wanted)):
        if token != other:
            return f"token {i + 1} of {len(wanted)} is {token}, ours in f32 writes {other}"
    return f"all {len(wanted)} tokens as ours in f32"


def in_turn(workers, number):
    """The workers, another one first in every round."""
    first = number % len(workers)
    return workers[first:] + workers[:first]


def measure_speed(engines, checkpoint, threads, rounds, record):
    """Decoding, prefill and memory of workers that stay."""
    with contextlib.ExitStack() as stack:
        workers = []
        for engine in engines:
            worker = Worker(engine, threads)
            stack.callback(worker.close)
            worker.stop()
            workers.append(worker)
            record.note(f"{engine}: {worker.detail}")
        tokens = check(workers, checkpoint, threads, record)
        for number in range(rounds):
            for worker in in_turn(workers, number):
                reply = worker.ask_stopped(**checkpoint.decode)
                record.add(worker.engine, threads, "decode", "tokens/s", TOKENS / reply["seconds"])
                if reply["tokens"] != tokens[worker][0]:
                    record.note(f"{worker.engine}, threads {threads}: not the same tokens in every round")
            for count, command in checkpoint.prefills.items():
                for worker in in_turn(workers, number):
                    reply = worker.ask_stopped(**command)
                    record.add(worker.engine, threads, f"prefill {count}", "tokens/s", count / reply["seconds"])
        for number in range(rounds):
            measure_pairs(workers, checkpoint, threads, number, record)
        for worker in workers:
            record.add(worker.engine, threads, "peak memory", "MiB", worker.peak())


def measure_pairs(workers, checkpoint, threads, number, record):
    """How many times as fast ours decodes as another engine right before or after it: memory has no time to change its speed.

    Ours in f32 beside everyone, ours in bf16 beside who computes with bf16 weights.
    """
    ours = [worker for worker in workers if worker.engine.name == "ours"]
    others = [worker for worker in workers if not worker.engine.name.startswith("ours")]
    for mine in ours:
        for other in others:
            if (mine.engine.dtype, other.engine.dtype) == ("bf16", "f32"):
                continue
            seconds = {
                worker: worker.ask_stopped(**checkpoint.decode)["seconds"]
                for worker in in_turn([mine, other], number)
            }
            record.add(mine.engine, threads, f"decode over {other.engine}", RATIO, seconds[other] / seconds[mine])


def measure_first(engines, checkpoint, threads, rounds, record):
    """From the start of a process to its first token; the files are in memory from before."""
    tokens = {}
    for number in range(rounds):
        for kind, command in checkpoint.first.items():
            for engine in in_turn(engines, number):
                if kind == "text" and not engine.text:
                    continue
                start = time.perf_counter()
                with contextlib.closing(Worker(engine, threads)) as worker:
                    tokens[engine, kind] = worker.ask(**command)["tokens"]
                    seconds = time.perf_counter() - start
                record.add(engine, threads, f"first token from {kind}", "s", seconds)
    for (engine, kind), mine in tokens.items():
        wanted = tokens[engines[0], kind]
        if mine != wanted:
            record.note(f"{engine}, first token from {kind}: {mine}, ours {wanted}")


# ---- what it ran on ---------------------------------------------------------------------------------


def machine():
    """The processor and memory, in a line."""
    info = Path("/proc/cpuinfo").read_text()
    fields = dict(line.split(":", 1) for line in info.split("\n\n")[0].splitlines())
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    flags = [flag for flag in known if flag in fields.get("flags", "").split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = f"{os.cpu_count()} cores, {memory:.0f} GiB"
    return f"{fields.get('model name', platform.machine())}, {cores}, {' '.join(flags)}"


def versions(arguments):
    """What was run, in a line for each."""
    commit = call("git", "describe", "--always", "--dirty", "--exclude=*", cwd=ROOT)
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
    yield f"ours: {package['name']} {package['version']}, commit {commit}, {call('rustc', '--version')}"
    if "llama.cpp" in arguments.engines:
        yield f"llama.cpp: {python_versions(arguments.llama_python, 'llama-cpp-python')}"
    if "transformers" in arguments.engines:
        yield f"transformers: {python_versions(sys.executable, 'transformers', 'torch')}"
    if "candle" in arguments.engines:
        lock = tomllib.loads((HERE / "candle/Cargo.lock").read_text())
        found = {package["name"]: package["version"] for package in lock["package"]}
        names = ", ".join(f"{name} {found[name]}" for name in ("candle-transformers", "gemm"))
        yield f"candle: {names}, RUSTFLAGS '{arguments.candle_rustflags}'"


def openmp():
    """How the threads of llama.cpp and torch wait, where that is not left to them."""
    policy = os.environ.get("OMP_WAIT_POLICY")
    return [f"OMP_WAIT_POLICY={policy}"] if policy else []


def python_versions(python, *names):
    """Versions of packages of an interpreter, and its own."""
    code = (
        "import sys, platform; from importlib.metadata import version;"
        "print(*(f'{name} {version(name)}' for name in sys.argv[1:]), 'Python ' + platform.python_version(), sep=', ')"
    )
    return call(python, "-c", code, *names)


class Others:
    """What else kept the processors busy, as a share of their time: next to nothing in a good measurement."""

    def __init__(self):
        self.start = self.now()

    def now(self):
        """Seconds since the start of the machine: everything's, and what was not for this script's processes."""
        # user, nice, system, idle, iowait, irq, softirq, steal
        times = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        times = [ticks / os.sysconf("SC_CLK_TCK") for ticks in times]
        total, idle = sum(times), times[3] + times[4]
        return total, total - idle - sum(os.times()[:4])

    def percent(self):
        """Since it was made. Processes of this script count once they have ended."""
        total, others = (now - before for now, before in zip(self.now(), self.start))
        return 100 * others / total


# ---- the file and the tables ------------------------------------------------------------------------


def write(path, heading, record):
    """The CSV file; lines that begin with # are for people."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        for line in [*heading, *record.notes]:
            file.write(f"# {line}\n")
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(record.rows())


def tables(path):
    """The tables of benches/peers.md: in brackets, a value divided by that of ours of the same type."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    # Files without this column are of the time when there was one model.
    model = rows[0].get("model", DEFAULT_MODEL.name)
    pairs = [row for row in rows if row["unit"] == RATIO]
    rows = [row for row in rows if row["unit"] != RATIO]
    measures = list(dict.fromkeys((row["measure"], row["unit"]) for row in rows))
    engines = list(dict.fromkeys((row["engine"], row["dtype"]) for row in rows))
    found = {(row["engine"], row["dtype"], row["threads"], row["measure"]): float(row["median"]) for row in rows}
    for threads in dict.fromkeys(row["threads"] for row in rows):
        print(f"\n| {model}, {threads} thread{'s' * (threads != '1')} | " + " | ".join(f"{m}, {unit}" for m, unit in measures) + " |")
        print("|---" * (1 + len(measures)) + "|")
        for name, dtype in engines:
            cells = [cell(found, name, dtype, threads, measure) for measure, _ in measures]
            print(f"| {name} {dtype} | " + " | ".join(cells) + " |")
    if pairs:
        print(f"\n| {model}, in pairs | threads | median | lowest | highest |\n|---|---|---|---|---|")
    for row in pairs:
        figures = " | ".join(f"{float(row[column]):.2f}" for column in ("median", "lowest", "highest"))
        print(f"| {row['engine']} {row['dtype']}, {row['measure']} | {row['threads']} | {figures} |")


def cell(found, name, dtype, threads, measure):
    """A value, and how many times ours it is."""
    value = found.get((name, dtype, threads, measure))
    if value is None:
        return "–"
    shown = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    ours = found.get(("ours", dtype, threads, measure)) or found["ours", "f32", threads, measure]
    return shown if name == "ours" else f"{shown} ({value / ours:.2f})"


def main():
    parser = argparse.ArgumentParser(description="Other engines beside ours on a real model.")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="Hugging Face folder, by default Gemma 3 270M")
    parser.add_argument("--gguf", type=Path, help="compare on this file of the same model: ours in f32 on it and in bf16 on the folder, and llama.cpp")
    parser.add_argument("--engines", nargs="*", default=["llama.cpp", "transformers", "candle"], help="beside ours")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5, help="of decoding and prefill")
    parser.add_argument("--starts", type=int, default=3, help="rounds of starting processes")
    parser.add_argument("--llama-python", default=sys.executable, help="the Python that has llama-cpp-python")
    parser.add_argument("--level", default="best", help="instructions of ours, such as avx2; beside a llama.cpp that is built for those")
    parser.add_argument("--candle-rustflags", default="", help="such as '-C target-cpu=native'")
    parser.add_argument("--output", type=Path, help="default benches/peers/DATE-MODEL.csv")
    parser.add_argument("--tables", type=Path, metavar="CSV", help="only print the tables of such a file")
    arguments = parser.parse_args()
    try:
        path = arguments.tables or run(arguments)
        tables(path)
    except (Failure, OSError) as error:
        sys.exit(f"peers.py: {error}")


def run(arguments):
    """Measures everything; returns the file it wrote."""
    checkpoint = Checkpoint(arguments.model)
    name = f"{checkpoint.name}-gguf" if arguments.gguf else checkpoint.name
    path = arguments.output or HERE / f"{datetime.date.today()}-{name}.csv"
    record = Record(checkpoint.name)
    if "candle" in arguments.engines and checkpoint.model_type != CANDLE_MODEL_TYPE:
        arguments.engines = [name for name in arguments.engines if name != "candle"]
        record.note(f"candle is left out: its worker runs {CANDLE_MODEL_TYPE} alone, not {checkpoint.model_type}")
    build(arguments.engines, arguments.candle_rustflags)
    heading = [f"{datetime.date.today()}, {machine()}", checkpoint, *versions(arguments), *openmp()]
    start, others = time.perf_counter(), Others()
    with tempfile.TemporaryDirectory() as work:
        engines = make_engines(arguments, checkpoint.folder, work)
        for threads in arguments.threads:
            measure_speed(engines, checkpoint, threads, arguments.rounds, record)
            measure_first(engines, checkpoint, threads, arguments.starts, record)
    heading.append(f"{time.perf_counter() - start:.0f} s, other processes used {others.percent():.0f} % of the processors")
    write(path, heading, record)
    return path


if __name__ == "__main__":
    main()
