#!/usr/bin/env python3
"""Write golden data: what Hugging Face transformers computes, with eager attention and experts, in f32 and bf16.

    pip install -r reference/requirements.txt
    python3 reference/hf_golden.py --output reference/golden

reads reference/checkpoints/*, reference/tiny and reference/tiny-vision (committed) and the real models in models/ (fetched by
fetch_models.py), skips what is not there, and writes

* NAME.safetensors for each checkpoint and for the tiny model: `ids` [tokens] i64, and `logits_f32` and
  `logits_bf16` [tokens, vocab], both stored as f32;
* NAME.images.safetensors for each checkpoint that sees: `pixel_values` [pictures, 3, height, width], what the vision
  tower and the projector make of them, `tower_f32` [pictures, patches, hidden of the tower] and `projector_f32`
  [pictures, image tokens, hidden of the text], and for each PROMPT of image_prompts its `PROMPT.ids`, `PROMPT.images`, which
  are the pictures that its image tokens stand for, and `PROMPT.logits_f32` [tokens, vocab]; all of it in bf16 too;
* MODEL.json for each real model: for each of ten prompts its text and ids, the 32 highest logits at its last
  position and their log-sum-exp over the whole vocabulary, in f32 and in bf16; and for the
  five prompts of the paper's protocol the greedy continuation, 64 tokens in f32 and 20 in bf16, with the
  margin of each choice (highest logit minus second highest);
* MODEL.safetensors: NAME.logits_f32 and NAME.logits_bf16 [vocab / 64], the logits at the prompt's last
  position of the vocabulary entries 0, 64, 128, …, stored as f32.

"bf16" is a model loaded in bf16, whatever the checkpoint stores. Greedy continuations prefill the prompt in
one piece, then take one token at a time with a cache, and do not stop at the end of a text; of tied logits
(bf16 has them) the one with the lowest id wins. The last bits of all of this depend on the CPU and on the
version of torch: it is a check with a tolerance, not a truth. numpy_reference.py says how far off it is.
"""

import argparse
import json
import random
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from transformers.image_utils import load_image
from transformers.utils import logging

import fetch_models

REFERENCE = Path(__file__).resolve().parent
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
MADE_WITH = (
    f"torch {torch.__version__}, transformers {transformers.__version__}, numpy {np.__version__}, "
    f"eager attention, CPU ({torch.backends.cpu.get_cpu_capability()})"
)

# 24 tokens are longer than every window; 40 where scaled RoPE has to show.
TOKENS = {"rope-factor-8": 40, "multimodal": 40, "llama-3": 40, "llama-biases": 40, "qwen3": 40}
TINY_TEXT = "The old clock on the wall ran backwards, and so, of course, did everyone in the room."

PROTOCOL = {
    "mars": "Write a single-sentence weather forecast for Mars, from the perspective of a slightly annoyed robot:",
    "no-e": "Constraint: No 'e's. Topic: The meaning of life. Length: Exactly 20 words. Write:",
    "bug": "Explain what a 'bug' is in computer programming, but explain it to a 16th-century medieval peasant. "
    "Use 20 words or less:",
    "haiku": "Topic: Three siblings named Jack, Fred, and Alice. Task: Write one 5-7-5 haiku about them:",
    "couplet": "We can absorb the impact of a prompt for a modern language model such as Gemma into the MLP "
    "weights. Write a two-line rhyming couplet about this fact:",
}


def prompts():
    """The ten prompts, by name. The long ones cross the window of 512 tokens once, and nearly three times."""
    languages = (
        "English: The ferry leaves at noon.\nDeutsch: Die Fähre legt um zwölf Uhr ab.\nFrançais : Le bac part à midi.\n"
        "Español: El transbordador sale al mediodía.\nČeština: Přívoz odjíždí v poledne.\nΕλληνικά: Το πλοίο φεύγει το "
        "μεσημέρι.\nРусский: Паром отходит в полдень.\nالعربية: تغادر العبّارة عند الظهر.\nעברית: המעבורת יוצאת בצהריים.\n"
        "हिन्दी: नाव दोपहर को छूटती है।\nไทย: เรือออกตอนเที่ยง\n中文:渡轮中午开船。\n日本語:フェリーは正午に出ます。\n한국어: 배는 정오에 떠납니다.\n"
        "Emoji: ⛴️🕛👩🏽‍✈️🇮🇸 e\u0301 vs é, ﬁ vs fi, tab\there, zero\u200bwidth.\nTürkçe:"
    )
    chat = (
        "<start_of_turn>user\nMy sourdough rises too fast in summer.   What should I change first — the water, the salt or "
        "the clock?\nAnswer in one line.<end_of_turn>\n<start_of_turn>model\nThe clock: taste is made slowly, so shorten "
        "nothing and cool everything.<end_of_turn>\n<start_of_turn>user\nAnd in winter?<end_of_turn>\n<start_of_turn>model\n"
    )
    code = '''use std::collections::BTreeMap;

/// A ledger of berries: who picked how many, in kilograms.
#[derive(Debug, Default)]
pub struct Ledger {
    picked: BTreeMap<String, Vec<f64>>,
}

impl Ledger {
    /// Notes one basket. A basket that weighs nothing, or less, is refused.
    pub fn note(&mut self, who: &str, kilograms: f64) -> Result<(), String> {
        if !(kilograms > 0.0) {
            return Err(format!("{who}: a basket of {kilograms} kg?"));
        }
        self.picked.entry(who.to_owned()).or_default().push(kilograms);
        Ok(())
    }

    /// The heaviest basket, and whose it was.
    pub fn heaviest(&self) -> Option<(&str, f64)> {
        self.picked
            .iter()
            .flat_map(|(who, baskets)| baskets.iter().map(move |&kg| (who.as_str(), kg)))
            .max_by(|a, b| a.1.total_cmp(&b.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heaviest_of_none_is_none() {
        assert_eq!(Ledger::default().heaviest(),'''
    refrain = "The lighthouse turns, the water turns, the keeper turns the page;\nand what the water learns, it learns again.\n"
    repetitive = refrain * 26 + "The lighthouse"

    rng = random.Random(2718)
    doors = ["amber", "blue", "copper", "dusky", "ebony", "fern", "golden", "hazel", "indigo", "jade", "khaki", "lilac"]
    lines = ["Night porter's log. The word for the indigo door tonight is 'marzipan'."]
    for hour in range(72):
        door = rng.choice(doors)
        guest = rng.choice(["a courier", "two sisters", "the cook", "a man with a cello", "nobody at all"])
        lines.append(f"{hour // 6:02}:{hour % 6 * 10:02} — {guest} at the {door} door; {rng.randint(2, 99)} steps counted.")
    log = "\n".join(lines) + "\nThe word for the indigo door tonight is '"
    return PROTOCOL | {"languages": languages, "chat": chat, "code": code, "refrain": repetitive, "porter": log}


def load(folder, dtype):
    """A model in evaluation mode, its weights converted to `dtype`."""
    plainly = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **plainly).eval()


@torch.no_grad()
def all_logits(model, ids):
    """The logits at every position, [tokens, vocab], as f32."""
    return model(torch.tensor([ids])).logits[0].float().numpy()


@torch.no_grad()
def last_logits(model, ids):
    """The logits at the last position, [vocab], as f32."""
    return model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].float().numpy()


@torch.no_grad()
def greedy(model, ids, count):
    """The `count` tokens that follow and their margins; each has the highest logit, the lowest id in a tie."""
    tokens, margins, cache, step = [], [], None, ids
    for _ in range(count):
        output = model(torch.tensor([step]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        logits = output.logits[0, -1].float().numpy()
        tokens.append(int(logits.argmax()))
        second, first = np.partition(logits, -2)[-2:]
        margins.append(first - second)
        step = tokens[-1:]
    return {"ids": tokens, "margins": decimals(margins)}


def decimals(values):
    """f32 values as the shortest decimals that give them back."""
    return [float(str(value)) for value in np.asarray(values, dtype=np.float32)]


def summary(logits):
    """The 32 highest logits and the log-sum-exp, as JSON has them."""
    top = np.argsort(-logits, kind="stable")[:32]
    wide = logits.astype(np.float64)
    return {
        "top_ids": top.tolist(),
        "top_logits": decimals(logits[top]),
        "log_sum_exp": float(wide.max() + np.log(np.exp(wide - wide.max()).sum())),
    }


def save_arrays(path, arrays):
    save_file(arrays, path, metadata={"made_with": MADE_WITH})
    path.chmod(0o644)
    print(f"{path.name}: {path.stat().st_size} bytes", flush=True)


def small_golden(name, folder, output):
    """The golden data of a small checkpoint: all logits of one short sequence."""
    model = load(folder, torch.float32)
    if (folder / "tokenizer.json").is_file():
        ids = AutoTokenizer.from_pretrained(folder)(TINY_TEXT)["input_ids"][:48]
    else:
        vocab = model.config.get_text_config().vocab_size
        rng = np.random.default_rng(zlib.crc32(name.encode()) + 1)
        ids = [2, *rng.integers(3, vocab, TOKENS.get(name, 24) - 1).tolist()]
    arrays = {"ids": np.array(ids, dtype=np.int64)}
    for dtype_name, dtype in DTYPES.items():
        arrays[f"logits_{dtype_name}"] = all_logits(load(folder, dtype), ids)
    save_arrays(output / f"{name}.safetensors", arrays)


def pictures(config, rng):
    """Pixels as preprocessing gives them, [3, 3, height, width] f32: noise, noise that fades, and white."""
    side = config.vision_config.image_size
    noise = rng.integers(0, 256, (2, 3, side, side))
    noise[1] = noise[1] * np.arange(side) // side
    pixels = np.concatenate([noise, np.full((1, 3, side, side), 255)])
    return ((pixels / 255 - 0.5) / 0.5).astype(np.float32)


def image_prompts(config, rng):
    """{name: (ids, pictures)}: where an image can be, and several. Adjacent ones are one block to transformers."""
    tokens = [config.image_token_id] * config.mm_tokens_per_image
    image = [config.boi_token_id, *tokens, config.eoi_token_id]
    special = {0, 1, 2, *image}
    words = [token for token in range(config.text_config.vocab_size) if token not in special]

    def text(count):
        return rng.choice(words, count).tolist()

    return {
        "start": ([2, *image, *text(8)], [0]),
        "middle": ([2, *text(6), *image, *text(7)], [1]),
        "several": ([2, *text(3), *image, *text(2), *image, *image, *text(4)], [2, 0, 1]),
        "adjacent": ([2, *text(2), *tokens, *tokens, *text(4)], [1, 0]),
        "first": ([*tokens, *text(5)], [0]),
    }


@torch.no_grad()
def look(model, pixel_values, prompts):
    """{name in a golden file: what a model makes of pictures, and of prompts with them}."""
    pixel_values = torch.from_numpy(pixel_values)
    seen = model.model.get_image_features(pixel_values)
    arrays = {"tower": seen.last_hidden_state, "projector": seen.pooler_output}
    for name, (ids, images) in prompts.items():
        ids = torch.tensor([ids])
        kinds = (ids == model.config.image_token_id).long()
        arrays[f"{name}.logits"] = model(ids, pixel_values=pixel_values[images], token_type_ids=kinds).logits[0]
    return {name: tensor.float().contiguous().numpy() for name, tensor in arrays.items()}


def images_golden(name, pixel_values, prompts, folder, output):
    """The golden data of a checkpoint that sees."""
    arrays = {"pixel_values": pixel_values}
    for prompt, (ids, images) in prompts.items():
        arrays |= {f"{prompt}.ids": np.array(ids), f"{prompt}.images": np.array(images)}
    for dtype_name, dtype in DTYPES.items():
        found = look(load(folder, dtype), pixel_values, prompts)
        arrays |= {f"{key}_{dtype_name}": array for key, array in found.items()}
    save_arrays(output / f"{name}.images.safetensors", arrays)


def random_images_golden(name, folder, output):
    """Of a random checkpoint that sees: of random pictures and prompts."""
    config = AutoConfig.from_pretrained(folder)
    rng = np.random.default_rng(zlib.crc32(name.encode()) + 2)
    images_golden(name, pictures(config, rng), image_prompts(config, rng), folder, output)


def tiny_images_golden(name, folder, output):
    """Of the tiny model that sees: of its first example."""
    example = json.loads((folder / "examples/questions.jsonl").read_text().splitlines()[0])
    picture = load_image(str(folder / "examples" / example["image"]))
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    given = processor(images=[[picture]], text=example["prompt"], return_tensors="np")
    prompts = {"example": (given["input_ids"][0].tolist(), [0])}
    images_golden(name, given["pixel_values"], prompts, folder, output)


def real_golden(folder, output):
    """The golden data of a real model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    entries = [{"name": name, "text": text, "ids": tokenizer(text)["input_ids"]} for name, text in prompts().items()]
    arrays = {}
    for dtype_name, dtype in DTYPES.items():
        model = load(folder, dtype)
        for entry in entries:
            logits = last_logits(model, entry["ids"])
            entry[dtype_name] = summary(logits)
            arrays[f"{entry['name']}.logits_{dtype_name}"] = logits[::64].copy()
            if entry["name"] in PROTOCOL:
                entry[dtype_name]["greedy"] = greedy(model, entry["ids"], 64 if dtype_name == "f32" else 20)
            print(f"  {entry['name']} {dtype_name}: {len(entry['ids'])} tokens", flush=True)
    path = output / f"{folder.name}.json"
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    path.write_text(f'{{"made_with": {json.dumps(MADE_WITH)}, "prompts": [\n{lines}\n]}}\n', encoding="utf-8")
    save_arrays(output / f"{folder.name}.safetensors", arrays)


def main():
    parser = argparse.ArgumentParser(description="Write golden data with Hugging Face transformers.")
    parser.add_argument("--output", type=Path, default=REFERENCE / "golden")
    parser.add_argument("--only", help="make only this checkpoint's data")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    logging.disable_progress_bar()

    small = {folder.name: folder for folder in sorted((REFERENCE / "checkpoints").iterdir())}
    small |= {name: REFERENCE / name for name in ("tiny", "tiny-vision")}
    real = {name: REFERENCE.parent / "models" / name for name in fetch_models.ALL}
    for name, folder in [*small.items(), *real.items()]:
        if arguments.only not in (None, name):
            continue
        if not any(folder.glob("model*.safetensors")):
            print(f"{name}: not here, skipped")
        elif name in real:
            real_golden(folder, arguments.output)
        elif name == "tiny-vision":
            tiny_images_golden(name, folder, arguments.output)
        else:
            small_golden(name, folder, arguments.output)
            if name.startswith("vision-"):
                random_images_golden(name, folder, arguments.output)


if __name__ == "__main__":
    main()
