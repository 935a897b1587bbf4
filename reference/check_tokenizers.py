#!/usr/bin/env python3
"""What transformers makes of tokenizers' files, for tests/tokenizers.rs to compare with.

    pip install -r reference/requirements.txt
    python3 reference/check_tokenizers.py > reference/check_tokenizers.txt

The tokenizers are the tiny model's and one of bytes that is trained here, both changed as training and conversion
leave their files, and those of the real models in models/ as they are. Which class `AutoTokenizer` takes is asked for
pairs of a model type and a class that the files name.

Written are reference/tokenizers/*.golden.json and byte-level/.
"""

import datetime
import json
import logging
import tempfile
from pathlib import Path

import tokenizers
import transformers
from transformers import AutoTokenizer

import fetch_models
from check_templates import conversations

ROOT = Path(__file__).resolve().parent
FOLDER = ROOT / "tokenizers"

TINY_TEXTS = [
    "Bob likes figs.",
    " a  b\tc\n\nd ",
    "<bos>Ann <start_of_turn>user<end_of_turn> <eos>",
    "<mask> <unk> x <extra>  y<|named|>z <EXTRA>",
    "naïve 日本語 👩\u200d👧 \ufffd ▁x",
    "",
]
BYTE_LEVEL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>", "<|tool|>", "<|think|>"]
BYTE_LEVEL_TEXTS = [
    "Bob likes figs, doesn't he? He'LL say: x=12345;",
    " a  b\tc\n\n  d \r\n",
    "<|im_start|>user <|im_end|> <|endoftext|>",
    "<extra> x <extra>  y<|named|>z <EXTRA>",
    "naïve e\u0301 日本語 👩\u200d👧 \ufffd ½ ١٢٣",
    "",
]
MODEL_TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "  two  spaces,   three;\ttab\t\ttabs \u00a0nbsp\u3000wide ",
    "\n\nlines\r\n\r\nof\n \n  all\rkinds\n",
    "don't, I'LL, we'Ve, it’s, 'tis, o'clock, 'S",
    "0 1 12 123 1234 12345.678e-9 v2.0 3rd x86_64 ½ Ⅷ ² ١٢٣ १२",
    "naïve café e\u0301 ﬁ ﬀ Å \u212b İ ı ß ẞ ǅ",
    "日本語 中文,标点。한국어 ไทย हिन्दी עברית العربية Ελληνικά Русский",
    "👩🏽‍✈️🇮🇸⛴️ 🕛 \ufffd \u200b\u200d \ue000 \U000f0000 \U0001f9ff",
    "fn main() { let x: Vec<u8> = vec![0; 16]; println!(\"{x:?}\"); } // ok?\n\tif (a != b) return -1;\n",
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><|endoftext|> <|im_end|>x<|im_start|> y <|IM_START|>",
    "<tool_call>{\"name\": \"f\"}</tool_call> <repo_name>a<file_sep> <|fim_prefix|>b<|fim_suffix|>",
    "\x00\x01\x1f\x7f\x80\x9f NUL and controls",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa        ................----------------",
    "https://example.org/a_b?c=d&e=%20f#g user@example.org",
    "<bos> <s> </s> [INST] <unk> ▁x ĠG Ċ",
    "Миру — мир! 𝐇𝐞𝐥𝐥𝐨 ⅎ Ʞ ʞ Ა ა ﷽ ㎏",
    " " * 40 + "x" + " " * 33 + "\t" * 40 + "y" + "\n" * 35,
    "\r\n \r\n\t \n  \u2028\u2029\u0085\x0b\x0c \u2003",
    "12345678901234567890 1,234,567.89 0x1F 1e10 ½¾ ①②③ 二〇二六年",
    "CamelCaseXMLHttpRequest snake_case_name SCREAMING_CASE kebab-case a.b.c->d::e",
    "(((a)))[[b]]{{c}}<<d>>!!!???...,,,;;;:::''\"\"``--__++==//\\\\||&&%%$$##@@~~^^**",
    "'s 't 're 've 'm 'll 'd 'S 'RE ſ 'ſ ’s",
    "e\u0301 \u1112\u1161\u11ab 각 Ω \u2126 K \u212a ﬃ ①",
    "<0x0A> <0x41> <|end|> <start_of_turn>user\nHi<end_of_turn>\n",
    " ",
    "",
]


def token(content, **flags):
    base = {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True}
    return base | flags


def named(content, **flags):
    return token(content, **flags) | {"__type": "AddedToken"}


def tiny_cases():
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
    llama = {"tokenizer_class": "LlamaTokenizer"}
    yield "llama", {config: llama}
    yield "llama fast", {config: {"tokenizer_class": "LlamaTokenizerFast"}}
    yield "llama legacy", {config: llama | {"legacy": True}}
    yield "llama legacy null", {config: llama | {"legacy": None, "add_prefix_space": None}}
    yield "llama without space", {config: llama | {"add_prefix_space": False, "legacy": True}}
    yield "llama with other parts", {config: llama, template: {"normalizer": {"type": "Lowercase"}, "model": {"ignore_merges": True}}}
    yield "llama without bytes", {config: llama, template: {"model": {"byte_fallback": False, "unk_token": None}}}
    yield "llama padded", {config: llama | {"add_bos_token": False}, template: {
        "padding": {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 1,
                    "pad_type_id": 0, "pad_token": "<eos>"}}}
    yield from rebuilt_cases("llama", llama, "<start_of_turn>", "<end_of_turn>", listed)
    yield "no settings", {config: None}


def rebuilt_cases(name, of, first, second, listed):
    """Special tokens and their flags in classes that make a tokenizer anew; `first` and `second` are tokens 4 and 5."""
    template = "tokenizer.json"
    config = "tokenizer_config.json"
    yield f"{name}: listed flags", {config: of | {"eos_token": first, "added_tokens_decoder": listed | {
        "4": token(first, lstrip=True, rstrip=True), "5": token(second, special=False)}}}
    yield f"{name}: listed and new", {config: of | {"added_tokens_decoder": listed | {
        "900": token("<extra>", special=False, normalized=True, lstrip=True), "901": token("<|named|>", rstrip=True)}}}
    yield f"{name}: named by object", {config: of | {"eos_token": named(second), "mask_token": named("<extra>", lstrip=True)}}
    yield f"{name}: model's own", {config: of | {"image_token": "<|named|>", "boi_token": named("<extra>", rstrip=True)}}
    yield f"{name}: extra list", {config: of | {"extra_special_tokens": ["<extra>", named("<|named|>", rstrip=True)]}}
    yield f"{name}: null", {config: of | {"eos_token": None, "pad_token": None, "unk_token": None}}
    yield f"{name}: split", {config: of | {"split_special_tokens": True}}
    yield f"{name}: older files", {config: of, "added_tokens.json": {"<extra>": 900, "<|named|>": 899},
                                   "special_tokens_map.json": {"eos_token": token(second), "cls_token": "<extra>"}}
    yield f"{name}: no vocabulary entry", {config: of, template: {"added_tokens": [
        token(first) | {"id": 4}, token("<extra>", normalized=True, special=False) | {"id": 765}]}}


def byte_level_cases():
    """Changes of the byte-level tokenizer's files."""
    template = "tokenizer.json"
    config = "tokenizer_config.json"
    listed = {str(i): token(t) for i, t in enumerate(BYTE_LEVEL_TOKENS)}
    bos = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    with_bos = {"type": "TemplateProcessing", "single": [bos, text], "pair": [bos, text, bos, text], "special_tokens": {
        "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}}
    plain, gpt2, qwen2 = ({"tokenizer_class": name} for name in ["TokenizersBackend", "GPT2Tokenizer", "Qwen2Tokenizer"])
    digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]}
    llama3 = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"},
         "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}
    yield "as it is", {}
    yield "plain", {config: plain}
    yield "plain with a space", {config: plain | {"add_prefix_space": True}}
    yield "plain, digits apart", {config: plain, template: {"pre_tokenizer": digits}}
    yield "gpt2, digits apart", {config: gpt2, template: {"pre_tokenizer": digits}}
    yield "codegen, digits apart", {config: {"tokenizer_class": "CodeGenTokenizer", "add_prefix_space": True}, template: {
        "pre_tokenizer": digits, "post_processor": with_bos}}
    yield "llama of bytes", {config: {"tokenizer_class": "LlamaTokenizer"}, template: {"pre_tokenizer": llama3, "post_processor": with_bos}}
    yield "class of config.json", {config: {"tokenizer_class": None}, "config.json": {"tokenizer_class": "Qwen2TokenizerFast"}}
    yield "no bos", {config: plain | {"bos_token": None}, template: {"post_processor": with_bos}}
    for name, of in [("gpt2", gpt2), ("qwen2", qwen2)]:
        yield name, {config: of}
        yield f"{name} with a space", {config: of | {"add_prefix_space": True}}
        yield f"{name} with bos", {config: of, template: {"post_processor": with_bos}}
        yield f"{name} with other parts", {config: of, template: {
            "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"}, "model": {"ignore_merges": True}}}
        yield f"{name} padded", {config: of, template: {
            "padding": {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 1,
                        "pad_type_id": 0, "pad_token": "<|im_end|>"}}}
        yield from rebuilt_cases(name, of, BYTE_LEVEL_TOKENS[4], BYTE_LEVEL_TOKENS[5], listed)


def train_byte_level(folder):
    """A byte-level tokenizer of some hundred tokens, trained on the conversations."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=512, special_tokens=BYTE_LEVEL_TOKENS, show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator((json.dumps(arguments) for _, arguments in conversations()), trainer)
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | names
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def merged(base, patch):
    """An object with another merged into it; null removes nothing and is a value."""
    if not isinstance(patch, dict) or not isinstance(base, dict):
        return patch
    return base | {key: merged(base.get(key), value) for key, value in patch.items()}


def check_tokenizers(name, folder, first, cases, texts):
    """What AutoTokenizer makes of a folder's tokenizer with changes; `first` is the id of its <bos>."""
    files = {file: json.loads((folder / file).read_text()) for file in ["tokenizer.json", "tokenizer_config.json"]}
    config = json.loads((ROOT / "tiny" / "config.json").read_text())
    # Room for tokens that are added; the tests do without the weights.
    files["config.json"] = config | {"vocab_size": 1024, "bos_token_id": first}
    results = []
    for case, changes in cases:
        with tempfile.TemporaryDirectory() as changed:
            for file, content in (files | {file: merged(files.get(file, {}), change)
                                           for file, change in changes.items()}).items():
                if content is not None:
                    (Path(changed) / file).write_text(json.dumps(content))
            tokenizer = AutoTokenizer.from_pretrained(changed)
        plain = [tokenizer(text)["input_ids"] for text in texts]
        written = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in plain]
        results.append({"name": case, "changes": changes, "class": type(tokenizer).__name__, "ids": plain,
                        "written": written, "decoded": decoded, "special": tokenizer.special_tokens_map})
    write(name, [{"texts": texts}] + results)
    print(f"{len(results)} tokenizers x {len(texts)} texts in {name}")


def check_classes():
    """Which class AutoTokenizer takes for a model type and a class that the files name."""
    types = ["falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gptj", "granite", "llama", "mistral", "mixtral", "olmo2",
             "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2"]
    classes = [None, "CodeGenTokenizer", "GemmaTokenizer", "GPT2TokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast", "MyOwnTokenizer",
               "PreTrainedTokenizer", "PreTrainedTokenizerFast", "Qwen2Tokenizer", "TokenizersBackend"]
    results = []
    for base in ["tiny", "tokenizers/byte-level"]:
        for model_type in types:
            for declared in classes:
                with tempfile.TemporaryDirectory() as folder:
                    (Path(folder) / "config.json").write_text(json.dumps({"model_type": model_type}))
                    (Path(folder) / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": declared}))
                    (Path(folder) / "tokenizer.json").write_text((ROOT / base / "tokenizer.json").read_text())
                    tokenizer = AutoTokenizer.from_pretrained(folder)
                results.append([base == "tokenizers/byte-level", model_type, declared, type(tokenizer).__name__])
    write("classes", results)
    print(f"{len(results)} pairs of a model type and a class")


def check_models():
    """The real models' tokenizers."""
    results = []
    for name in fetch_models.ALL:
        tokenizer = AutoTokenizer.from_pretrained(ROOT.parent / "models" / name)
        for text in MODEL_TEXTS:
            ids = tokenizer(text)["input_ids"]
            results.append([name, text, ids, tokenizer.decode(ids, skip_special_tokens=True)])
    write("models", results)
    print(f"{len(results)} texts of {len(fetch_models.ALL)} real models")


def write(name, value):
    lines = ",\n".join(json.dumps(item, ensure_ascii=True) for item in value)
    (FOLDER / f"{name}.golden.json").write_text(f"[\n{lines}\n]\n")


def main():
    logging.disable()
    print(f"{datetime.date.today()}, transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
    train_byte_level(FOLDER / "byte-level")
    check_tokenizers("tiny", ROOT / "tiny", 2, tiny_cases(), TINY_TEXTS)
    check_tokenizers("byte-level", FOLDER / "byte-level", 0, byte_level_cases(), BYTE_LEVEL_TEXTS)
    check_classes()
    check_models()


if __name__ == "__main__":
    main()
