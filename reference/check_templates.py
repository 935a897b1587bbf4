#!/usr/bin/env python3
"""What transformers makes of chat templates, for tests/chat_templates.rs to compare with.

    pip install -r reference/requirements.txt
    python3 reference/check_templates.py > reference/check_templates.txt

The templates in reference/templates are written for this purpose, each in the manner of a family of chat models and
with what its template uses. Each is rendered with each conversation by `apply_chat_template`, with line ends of both
kinds, and its text goes through the tiny model's tokenizer and the 270M's. features.txt has one expression or
statement of Jinja a line. The real models in models/ render their own templates.

Written are reference/templates/*.golden.json. The clock stands at 2026-11-07 09:05:03.
"""

import copy
import datetime
import hashlib
import json
import logging
from pathlib import Path

import jinja2
import transformers
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

import fetch_models

ROOT = Path(__file__).resolve().parent
FOLDER = ROOT / "templates"


class Clock(datetime.datetime):
    """A clock that stands."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 11, 7, 9, 5, 3, 42)


def digest(ids):
    """How many ids, and a hash of them."""
    return f"{len(ids)} {hashlib.sha256(' '.join(map(str, ids)).encode()).hexdigest()[:16]}"


def write(name, value):
    lines = ",\n".join(json.dumps(item, ensure_ascii=True) for item in value)
    (FOLDER / f"{name}.golden.json").write_text(f"[\n{lines}\n]\n")


def render(tokenizer, template, arguments):
    """The text, or None where transformers refuses."""
    arguments = copy.deepcopy(arguments)
    arguments.setdefault("add_generation_prompt", True)
    messages = arguments.pop("messages")
    try:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **arguments)
    except Exception:  # noqa: BLE001: whatever a template runs into
        return None


def conversations():
    """Names and arguments of the conversations."""
    for path in sorted((FOLDER / "conversations").glob("*.json")):
        arguments = json.loads(path.read_text())
        yield path.stem, {"messages": arguments} if isinstance(arguments, list) else arguments


def check_templates(tiny, gemma):
    cases = []
    templates = sorted(FOLDER.glob("*.jinja"))
    for path in templates:
        template = path.read_text()
        for conversation, arguments in conversations():
            text = render(tiny, template, arguments)
            assert text == render(tiny, template.replace("\n", "\r\n"), arguments)
            case = {"template": path.stem, "conversation": conversation, "text": text}
            if text is not None:
                for name, tokenizer in [("tiny", tiny), ("gemma", gemma)]:
                    case[name] = digest(tokenizer(text, add_special_tokens=False)["input_ids"])
            cases.append(case)
    write("cases", cases)
    refused = sum(case["text"] is None for case in cases)
    print(f"{len(templates)} templates x {len(cases) // len(templates)} conversations: {len(cases) - refused} texts, "
          f"{refused} that the template refuses")


def check_features():
    arguments = json.loads((FOLDER / "features.json").read_text())
    results = []
    for line in (FOLDER / "features.txt").read_text().split("\n")[:-1]:
        source = json.loads(line)
        try:
            compiled = chat_template_utils._compile_jinja_template(source)
            text = compiled.render(**copy.deepcopy(arguments))
            # A memory address is another one each time.
            text = text if " at 0x" not in text else None
        except Exception:  # noqa: BLE001
            text = None
        results.append([source, text])
    write("features", results)
    print(f"{len(results)} expressions and statements, of which {sum(t is None for _, t in results)} are refused")


def check_models():
    """The real models' own templates: hashes of the texts, which are not ours to keep."""
    results = []
    for name in fetch_models.ALL:
        tokenizer = AutoTokenizer.from_pretrained(ROOT.parent / "models" / name)
        for conversation, arguments in conversations() if tokenizer.chat_template else []:
            text = render(tokenizer, None, arguments)
            ids = text and digest(tokenizer(text, add_special_tokens=False)["input_ids"])
            results.append([name, conversation, text and hashlib.sha256(text.encode()).hexdigest()[:16], ids])
    write("models", results)
    refused = sum(text is None for _, _, text, _ in results)
    print(f"{len(results)} conversations in real models' own templates, of which these refuse {refused}")


def main():
    logging.disable()
    chat_template_utils.datetime = Clock
    print(f"{datetime.date.today()}, transformers {transformers.__version__}, jinja2 {jinja2.__version__}")
    tiny = AutoTokenizer.from_pretrained(ROOT / "tiny")
    gemma = AutoTokenizer.from_pretrained(ROOT.parent / "models/gemma-3-270m")
    check_templates(tiny, gemma)
    check_features()
    check_models()


if __name__ == "__main__":
    main()
