#!/usr/bin/env python3
"""What transformers makes of chat templates and of tokenizers' files, for tests/chat_templates.rs to compare with.

    pip install -r reference/requirements.txt
    python3 reference/check_templates.py > reference/check_templates.txt

The templates in reference/templates are written for this purpose, each in the manner of a family of chat models and
with what its template uses. Each is rendered with each conversation by `apply_chat_template`, with line ends of both
kinds, and its text goes through the tiny model's tokenizer and the 270M's. features.txt has one expression or
statement of Jinja a line. Tokenizers are the tiny one's files, changed as training and conversion leave them.

Written are reference/templates/*.golden.json. The clock stands at 2026-11-07 09:05:03.
"""

import copy
import datetime
import hashlib
import json
import logging
import tempfile
from pathlib import Path

import jinja2
import tokenizers
import transformers
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

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


def check_templates(tiny, gemma):
    cases = []
    conversations = sorted((FOLDER / "conversations").glob("*.json"))
    templates = sorted(FOLDER.glob("*.jinja"))
    for path in templates:
        template = path.read_text()
        for conversation in conversations:
            arguments = json.loads(conversation.read_text())
            arguments = {"messages": arguments} if isinstance(arguments, list) else arguments
            text = render(tiny, template, arguments)
            assert text == render(tiny, template.replace("\n", "\r\n"), arguments)
            case = {"template": path.stem, "conversation": conversation.stem, "text": text}
            if text is not None:
                for name, tokenizer in [("tiny", tiny), ("gemma", gemma)]:
                    case[name] = digest(tokenizer(text, add_special_tokens=False)["input_ids"])
            cases.append(case)
    write("cases", cases)
    refused = sum(case["text"] is None for case in cases)
    print(f"{len(templates)} templates x {len(conversations)} conversations: {len(cases) - refused} texts, "
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


TEXTS = [
    "Bob likes figs.",
    " a  b\tc\n\nd ",
    "<bos>Ann <start_of_turn>user<end_of_turn> <eos>",
    "<mask> <unk> x <extra>  y<|named|>z <EXTRA>",
    "naïve 日本語 👩\u200d👧 \ufffd ▁x",
    "",
]


def token(content, **flags):
    base = {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True}
    return base | flags


def named(content, **flags):
    return token(content, **flags) | {"__type": "AddedToken"}


def tokenizer_cases():
    """Changes of the tiny model's files: by name, an object that is merged into the file's."""
    gemma = {"tokenizer_class": "GemmaTokenizer"}
    plain = {"tokenizer_class": "PreTrainedTokenizerFast"}
    template = "tokenizer.json"
    config = "tokenizer_config.json"
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    eos = {"SpecialToken": {"id": "<eos>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    special = {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in [("<bos>", 2), ("<eos>", 1)]}
    with_eos = {"type": "TemplateProcessing", "single": [bos, text, eos], "pair": [text, text], "special_tokens": special}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    listed = {str(i): token(t) for i, t in enumerate(["<pad>", "<eos>", "<bos>", "<unk>"])}
    yield "as it is", {}
    yield "gemma", {config: gemma}
    yield "gemma fast", {config: {"tokenizer_class": "GemmaTokenizerFast"}}
    yield "no class", {config: {"tokenizer_class": None}}
    yield "class of config.json", {config: {"tokenizer_class": None}, "config.json": plain, template: {"normalizer": None}}
    yield "unknown class", {config: {"tokenizer_class": "MyOwnTokenizer"}, template: {"normalizer": None}}
    yield "slow base class", {config: {"tokenizer_class": "PreTrainedTokenizer"}, template: {"normalizer": None}}
    yield "llama with bytes", {config: {"tokenizer_class": "LlamaTokenizer"},
                               template: {"pre_tokenizer": level, "decoder": level, "normalizer": None}}
    yield "no normalizer", {config: plain, template: {"normalizer": None}}
    yield "gemma without normalizer", {config: gemma, template: {"normalizer": None}}
    yield "gemma in lower case", {config: gemma, template: {"normalizer": {"type": "Lowercase"}}}
    yield "lower case", {config: plain, template: {"normalizer": {"type": "Lowercase"}}}
    yield "gemma with other splits", {config: gemma, template: {"pre_tokenizer": {"type": "Whitespace"}}}
    yield "other splits", {config: plain, template: {"pre_tokenizer": {"type": "Whitespace"}}}
    yield "gemma with other bytes", {config: gemma, template: {"model": {"byte_fallback": False, "fuse_unk": False}}}
    yield "no bytes", {config: plain, template: {"model": {"byte_fallback": False, "fuse_unk": False}}}
    yield "gemma ignores merges", {config: gemma, template: {"model": {"ignore_merges": True}}}
    yield "ignores merges", {config: plain, template: {"model": {"ignore_merges": True}}}
    yield "gemma with dropout", {config: gemma, template: {"model": {"dropout": 0.5}}}
    yield "gemma with another unknown", {config: gemma | {"unk_token": "<pad>"}, template: {"model": {"byte_fallback": False}}}
    yield "eos after", {config: plain, template: {"post_processor": with_eos}}
    yield "gemma eos after", {config: gemma | {"add_eos_token": False}, template: {"post_processor": with_eos}}
    yield "asked for eos", {config: plain | {"add_eos_token": True}}
    yield "asked for no bos", {config: gemma | {"add_bos_token": False}}
    yield "no post-processor", {config: plain, template: {"post_processor": None}}
    yield "gemma without post-processor", {config: gemma | {"add_bos_token": True}, template: {"post_processor": None}}
    yield "truncation and padding", {config: plain | {"pad_token": None}, template: {
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<pad>"}}}
    for name, of in [("plain", plain), ("gemma", gemma)]:
        yield f"{name}: listed tokens", {config: of | {"added_tokens_decoder": listed}}
        yield f"{name}: listed flags", {config: of | {"added_tokens_decoder": listed | {
            "4": token("<start_of_turn>", lstrip=True, rstrip=True), "5": token("<end_of_turn>", special=False)}}}
        yield f"{name}: listed and new", {config: of | {"added_tokens_decoder": listed | {
            "900": token("<extra>", special=False, normalized=True, lstrip=True), "901": token("<|named|>", rstrip=True)}}}
        yield f"{name}: normalized", {config: of | {"added_tokens_decoder": {"900": token("▁x", normalized=True, special=False)}}}
        yield f"{name}: single word", {config: of | {"added_tokens_decoder": {"900": token("x", single_word=True, special=False)}}}
        yield f"{name}: named by object", {config: of | {"eos_token": named("<end_of_turn>"), "unk_token": named("<unk>"),
                                                         "mask_token": named("<extra>", lstrip=True)}}
        yield f"{name}: model's own", {config: of | {"image_token": "<|named|>", "boi_token": named("<extra>")}}
        yield f"{name}: extra list", {config: of | {"extra_special_tokens": ["<extra>", named("<|named|>", rstrip=True)]}}
        yield f"{name}: extra names", {config: of | {"extra_special_tokens": {"image": "<extra>", "named_token": "<|named|>"}}}
        yield f"{name}: additional", {config: of | {"additional_special_tokens": ["<extra>"]}}
        yield f"{name}: null", {config: of | {"eos_token": None, "pad_token": None}}
        yield f"{name}: no names", {config: of | {"eos_token": "<absent>", "unk_token": "<absent>"}}
        yield f"{name}: split", {config: of | {"split_special_tokens": True}}
        yield f"{name}: older map", {config: of | {"eos_token": "<pad>"}, "special_tokens_map.json": {
            "eos_token": token("<end_of_turn>"), "cls_token": "<extra>"}}
        yield f"{name}: older map unused", {config: of | {"added_tokens_decoder": listed}, "special_tokens_map.json": {
            "eos_token": "<end_of_turn>"}}
        yield f"{name}: older tokens", {config: of, "added_tokens.json": {"<extra>": 900, "<|named|>": 899}}
        yield f"{name}: clean up", {config: of | {"clean_up_tokenization_spaces": True}}
        yield f"{name}: no vocabulary entry", {config: of, template: {"added_tokens": [
            token("<bos>") | {"id": 2}, token("<extra>", normalized=True, special=False) | {"id": 765}]}}
    yield "no settings", {config: None}


def merged(base, patch):
    """An object with another merged into it; null removes nothing and is a value."""
    if not isinstance(patch, dict) or not isinstance(base, dict):
        return patch
    return base | {key: merged(base.get(key), value) for key, value in patch.items()}


FILES = ["config.json", "tokenizer.json", "tokenizer_config.json"]


def check_tokenizers():
    files = {name: json.loads((ROOT / "tiny" / name).read_text()) for name in FILES}
    # Room for tokens that are added; the tests do without the weights.
    files["config.json"]["vocab_size"] = 1024
    results = []
    for name, changes in tokenizer_cases():
        with tempfile.TemporaryDirectory() as folder:
            for file, content in (files | {file: merged(files.get(file, {}), change)
                                           for file, change in changes.items()}).items():
                if content is not None:
                    (Path(folder) / file).write_text(json.dumps(content))
            tokenizer = AutoTokenizer.from_pretrained(folder)
        plain = [tokenizer(text)["input_ids"] for text in TEXTS]
        written = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
        decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in plain]
        results.append({"name": name, "changes": changes, "class": type(tokenizer).__name__, "ids": plain,
                        "written": written, "decoded": decoded, "special": tokenizer.special_tokens_map})
    write("tokenizers", [{"texts": TEXTS}] + results)
    print(f"{len(results)} tokenizers x {len(TEXTS)} texts")


def main():
    logging.disable()
    chat_template_utils.datetime = Clock
    print(f"{datetime.date.today()}, transformers {transformers.__version__}, jinja2 {jinja2.__version__}, "
          f"tokenizers {tokenizers.__version__}")
    tiny = AutoTokenizer.from_pretrained(ROOT / "tiny")
    gemma = AutoTokenizer.from_pretrained(ROOT.parent / "models/gemma-3-270m")
    check_templates(tiny, gemma)
    check_features()
    check_tokenizers()


if __name__ == "__main__":
    main()
