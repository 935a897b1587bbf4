"""Train the tiny Gemma 3 of reference/tiny-vision: it answers questions about a drawn picture.

    <start_of_image>What colour is the circle?
    A:                                              ->  " red" <eos>

    python reference/train_vision.py [--out reference/tiny-vision] [--steps 2000] [--seed 7]

A Gemma3ForConditionalGeneration with everything that the 4B has: SigLIP's tower, pooling and projection, image tokens
that see each other, a sliding window shorter than an image, a tokenizer built like Gemma's own, and what the processor
of transformers wants beside it. drawings.py draws the pictures and asks the questions.

Training draws every picture anew, from one seed; the pictures of the checks are from others. A sequence is one picture
and behind it QUESTIONS questions with their answers, which see the picture and themselves and not each other: each is at the
positions that it has when it is asked alone. The last of them is asked without the picture, and then any answer is
right: nothing can be known. Every other batch is a chat: the question is a user's turn, "red<end_of_turn>" the model's.

First the tower alone learns what is where, from a linear map that reads it off the image tokens and is thrown away. Then
all of it learns to answer, from pictures of one shape first; it goes on to four as it answers well. Then questions about
two shapes, which are learned slowest, are asked as often as all others together. Last, the same once more while the gains
behind the MLPs are raised: an MLP that says much can say what a picture changes, so a patch for a span is within reach.
"""
import argparse, json, pathlib, platform, time

import numpy, PIL, safetensors, tokenizers, torch, transformers
import torch.nn.functional as F
from PIL import Image
from transformers import AutoProcessor, Gemma3Config, Gemma3ForConditionalGeneration, GenerationConfig

from drawings import COLOURS, COUNTS, KINDS, SHAPES, WORDS, Scene, paint
from train_tiny import build_tokenizer

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
           "<image_soft_token>"]
PAD, EOS, BOS, UNK, TURN, END, BOI, EOI, IMAGE = range(9)
SIDE, PATCH, IMAGE_TOKENS = 64, 8, 16
WINDOW = 12
QUESTIONS = 7
GAIN = 3.0                                                             # 1 + w behind the MLPs, in the end at least
GROWTH = 250                                                           # steps of good answers from one shape to four
SIZES = [(96, 96), (96, 96), (64, 64), (112, 112), (72, 104), (100, 76)]

CHAT_TEMPLATE = ("{{ bos_token }}{% for message in messages %}<start_of_turn>"
                 "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
                 "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
                 "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
                 "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
                 "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}")


# ---- what the processor needs -------------------------------------------------------------------

def write_processor(out):
    """Writes the tokenizer and what the processor is told, as Gemma's folders have them."""
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    config = {"processor_class": "Gemma3Processor", **named, "extra_special_tokens": named}
    tokenizer = build_tokenizer(out, WORDS + ["\n\n"], SPECIAL, CHAT_TEMPLATE, config)
    third = [0.5] * 3
    write = lambda name, value: (out / name).write_text(json.dumps(value, indent=2) + "\n")
    write("preprocessor_config.json", {
        "do_convert_rgb": None, "do_normalize": True, "do_pan_and_scan": None, "do_rescale": True, "do_resize": True,
        "image_mean": third, "image_processor_type": "Gemma3ImageProcessor", "image_seq_length": IMAGE_TOKENS,
        "image_std": third, "processor_class": "Gemma3Processor", "resample": 2, "rescale_factor": 1 / 255,
        "size": {"height": SIDE, "width": SIDE}})
    write("processor_config.json", {"image_seq_length": IMAGE_TOKENS, "processor_class": "Gemma3Processor"})
    write("chat_template.json", {"chat_template": CHAT_TEMPLATE})
    return tokenizer


def prompt(question, chat, image="<start_of_image>"):
    """What is asked, as a user types it; the tokenizer or the chat template puts <bos> in front."""
    turn = f"<start_of_turn>user\n{image}{question}<end_of_turn>\n<start_of_turn>model\n"
    return turn if chat else f"{image}{question}\nA:"


# ---- the data -----------------------------------------------------------------------------------

def guess(kind, question, rng):
    """An answer that could be right as far as the question says."""
    colour, count = rng.choice(list(COLOURS)), rng.choice(COUNTS)
    shape = rng.choice([shape for shape in SHAPES if shape not in question])
    return {"colour": colour, "count": count, "place": f"{colour} {shape}"}.get(kind, shape)


def ask(scene, kind, rng):
    """One (question, answer) of that kind, None where the scene has none."""
    questions = scene.questions(kind)
    return questions[rng.integers(len(questions))] if questions else None


class Data:
    def __init__(self, tokenizer, processor, rng):
        self.rng, self.images, self.known = rng, processor.image_processor, {}
        self.encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        picture = f"\n\n<start_of_image>{'<image_soft_token>' * IMAGE_TOKENS}<end_of_image>"
        self.before = [self.encode("<bos>" + prompt("", chat, picture).split("<end_of_image>")[0] + "<end_of_image>")
                       for chat in (False, True)]
        self.width = max(len(self.question("What is at the bottom right?", "red circle", chat)[0]) for chat in (False, True))

    def question(self, question, answer, chat):
        """(ids, how many are the answer) of a question and its answer behind a picture."""
        key = question, answer, chat
        if key not in self.known:
            asked = prompt("\n\n" + question, chat, "<end_of_image>").split("<end_of_image>")[1]
            answer = self.encode(f"{answer}<end_of_turn>" if chat else f" {answer}<eos>")
            self.known[key] = self.encode(asked) + answer, len(answer)
        return self.known[key]

    def picture(self, most):
        """(scene, its picture) of one to `most` shapes, of any size."""
        scene = Scene.draw(self.rng, self.rng.integers(1, most + 1))
        return scene, paint(scene, self.rng, *SIZES[self.rng.integers(len(SIZES))])

    def pixels(self, pictures):
        return self.images([Image.fromarray(picture) for picture in pictures], return_tensors="pt").pixel_values

    def batch(self, n, most, more=0):
        """n sequences of one picture and QUESTIONS questions: pixels, what is where, ids, targets and weights, positions
        and masks. Kinds of question are as likely as another, but those about two shapes have `more` shares."""
        chat, rng = bool(self.rng.integers(2)), self.rng
        scenes, pictures = zip(*(self.picture(most) for _ in range(n)))
        before, width = self.before[chat], self.width - 1
        ids = torch.full((n, len(before) + QUESTIONS * width), PAD)
        ids[:, :len(before)] = torch.tensor(before)
        target, weight = torch.zeros_like(ids), torch.zeros(ids.shape)
        for row, scene in enumerate(scenes):
            kinds = [kind for kind in [*KINDS, *["relation"] * more] if scene.questions(kind)]
            for slot in range(QUESTIONS):
                kind = kinds[rng.integers(len(kinds))]
                question, answer = ask(scene, kind, rng)
                blind = slot == QUESTIONS - 1
                tokens, count = self.question(question, guess(kind, question, rng) if blind else answer, chat)
                at, length = len(before) + slot * width, len(tokens) - 1
                ids[row, at:at + length] = torch.tensor(tokens[:-1])
                target[row, at:at + length] = torch.tensor(tokens[1:])
                weight[row, at:at + length] = 0.01
                weight[row, at + length - count:at + length] = 0.1 if blind else 1.0
        return self.pixels(pictures), contents(scenes), ids, target, weight, *layout(before, width)


def contents(scenes):
    """[scenes, 2, 4] which shape and which colour each place has, 0 for none."""
    kinds, colours = ["", *SHAPES], ["", *COLOURS]
    said = [[scene.shapes.get(place, ("", "")) for place in range(4)] for scene in scenes]
    return torch.tensor([[[kinds.index(shape) for shape, _ in places], [colours.index(colour) for _, colour in places]]
                         for places in said])


def layout(before, width):
    """(positions [tokens], additive masks) of a picture and the questions behind it."""
    slot = torch.cat([torch.zeros(len(before)), 1.0 + torch.arange(QUESTIONS * width) // width]).long()
    at = torch.cat([torch.arange(len(before)), len(before) + torch.arange(QUESTIONS * width) % width])
    image = torch.cat([torch.tensor(before) == IMAGE, torch.zeros(QUESTIONS * width, dtype=torch.bool)])
    seen = (at[:, None] >= at) & ((slot[:, None] == slot) | (slot == 0) & (slot[:, None] < QUESTIONS))
    seen |= image[:, None] & image
    add = lambda m: torch.zeros(m.shape).masked_fill(~m, -1e9)[None, None]
    near = seen & (at[:, None] - at < WINDOW)
    return at[None], {"full_attention": add(seen), "sliding_attention": add(near)}


# ---- training -----------------------------------------------------------------------------------

def make_model(vocab):
    model = Gemma3ForConditionalGeneration(Gemma3Config(
        text_config=dict(
            vocab_size=vocab, hidden_size=64, intermediate_size=192, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=32, query_pre_attn_scalar=32,
            sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"] * 2,
            max_position_embeddings=512, rms_norm_eps=1e-6, initializer_range=0.125,
            pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS),
        vision_config=dict(
            model_type="siglip_vision_model", hidden_size=64, intermediate_size=128, num_hidden_layers=3,
            num_attention_heads=4, image_size=SIDE, patch_size=PATCH, vision_use_head=False),
        mm_tokens_per_image=IMAGE_TOKENS, boi_token_index=BOI, eoi_token_index=EOI, image_token_index=IMAGE,
        initializer_range=0.125, tie_word_embeddings=True, bos_token_id=BOS, eos_token_id=[EOS, END], pad_token_id=PAD))
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.125)
    for layer in model.model.language_model.layers:                    # 1 + w = 0.2: the MLPs begin small
        torch.nn.init.constant_(layer.post_feedforward_layernorm.weight, -0.8)
    return model


class Probe(torch.nn.Module):
    """What a linear map reads of each place from the mean of its image tokens. It teaches the tower, and is thrown away."""

    def __init__(self, width):
        super().__init__()
        self.shape, self.colour = (torch.nn.Linear(width, 1 + len(names)) for names in (SHAPES, COLOURS))

    def loss(self, features, content):
        n, tokens, width = features.shape
        side = int(tokens ** 0.5) // 2
        places = features.reshape(n, 2, side, 2, side, width).mean((2, 4)).reshape(n, 4, width)
        return sum(F.cross_entropy(head(places).flatten(0, 1), content[:, i].flatten())
                   for i, head in enumerate((self.shape, self.colour)))


def optimiser(parameters, rate, steps):
    """AdamW, and its rate: a short rise, then half a cosine down."""
    decay, plain = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() == 1]
    optim = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
                              lr=rate, betas=(0.9, 0.98))
    warm = steps // 15
    return optim, torch.optim.lr_scheduler.LambdaLR(optim, lambda s: min((s + 1) / warm, 0.02 + 0.98 * 0.5 * (
        1 + numpy.cos(numpy.pi * max(0, s - warm) / (steps - warm)))))


def update(loss, parameters, optim, schedule):
    optim.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optim.step()
    schedule.step()


def train_tower(model, probe, data, steps, batch, rate, say):
    """The tower and the projector alone, by what the probe reads."""
    start = time.time()
    parameters = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters(), *probe.parameters()]
    optim, schedule = optimiser(parameters, rate, steps)
    for step in range(1, steps + 1):
        scenes, pictures = zip(*(data.picture(4) for _ in range(batch)))
        features = model.model.get_image_features(data.pixels(pictures)).pooler_output
        loss = probe.loss(features, contents(scenes))
        update(loss, parameters, optim, schedule)
        if step % 100 == 0 or step == steps:
            say(f"tower: step {step:5}  loss {loss.item():.3f}  {time.time() - start:.0f} s")


def answers(model, batch):
    """The loss, the share of answer tokens that are right, and what the image tokens are, of a batch."""
    pixels, _, ids, target, weight, at, masks = batch
    seen = model.model.get_image_features(pixels)
    logits = model(input_ids=ids, mm_encoder_outputs={"image": seen}, attention_mask=masks, position_ids=at).logits
    each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    right = (logits.argmax(2) == target)[weight == 1.0].float().mean().item()
    return (each * weight.flatten()).sum() / weight.sum(), right, seen.pooler_output


def train_all(model, probe, data, steps, batch, rate, say):
    """All of it, by the answers; the probe keeps its share."""
    start, level, right = time.time(), 0.0, 0.0
    parameters = [*model.parameters(), *probe.parameters()]
    optim, schedule = optimiser(parameters, rate, steps)
    for step in range(1, steps + 1):
        drawn = data.batch(batch, 1 + round(3 * level))
        loss, share, features = answers(model, drawn)
        update(loss + 0.3 * probe.loss(features, drawn[1]), parameters, optim, schedule)
        right += 0.05 * (share - right)
        level = min(1.0, level + (right > 0.85) / GROWTH)
        if step % 100 == 0 or step == steps:
            say(f"step {step:5}  level {level:.2f}  loss {loss.item():.3f}  answer tokens right, running: {right:.3f}  "
                f"{time.time() - start:.0f} s")


@torch.no_grad()
def raise_gains(model, least):
    """Lifts every 1 + w of the norms behind the MLPs that is below `least` to it."""
    for layer in model.model.language_model.layers:
        layer.post_feedforward_layernorm.weight.clamp_(min=least - 1)


def train_relations(model, data, steps, batch, rate, say, name, gain=0.0):
    """Questions about two shapes are asked as often as all others together. The gains behind the MLPs are held above a
    bound that rises to `gain` in the first half."""
    start, right = time.time(), 0.0
    optim, schedule = optimiser([*model.parameters()], rate, steps)
    for step in range(1, steps + 1):
        loss, share, _ = answers(model, data.batch(batch, 4, more=4))
        update(loss, [*model.parameters()], optim, schedule)
        raise_gains(model, gain * min(1.0, 2 * step / steps))
        right += 0.05 * (share - right)
        if step % 100 == 0 or step == steps:
            say(f"{name}: step {step:5}  loss {loss.item():.3f}  answer tokens right, running: {right:.3f}  "
                f"{time.time() - start:.0f} s")


def save(model, out):
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=[EOS, END], pad_token_id=PAD)
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "tiny-vision")
    arg.add_argument("--tower-steps", type=int, default=600)
    arg.add_argument("--steps", type=int, default=2000)
    arg.add_argument("--relation-steps", type=int, default=800)
    arg.add_argument("--gain-steps", type=int, default=1400)
    arg.add_argument("--batch", type=int, default=32)
    arg.add_argument("--rate", type=float, default=3e-3)
    arg.add_argument("--seed", type=int, default=7)
    arg.add_argument("--threads", type=int, default=1)
    arg.add_argument("--resume", choices=["relations", "gains"], help="begin with this lesson, from what is saved in --out")
    a = arg.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    log = (a.out / "train.log").open("a" if a.resume else "w")

    def say(line):
        print(line, flush=True)
        print(line, file=log, flush=True)

    say("train_vision.py " + " ".join(f"--{name} {value}" for name, value in vars(a).items() if name != "out"))
    say(", ".join(f"{n} {v}" for n, v in [("python", platform.python_version())] + [
        (m.__name__, m.__version__) for m in (torch, transformers, tokenizers, safetensors, numpy, PIL)]))
    start = time.time()
    tokenizer = write_processor(a.out)
    processor = AutoProcessor.from_pretrained(a.out, backend="pil")
    if not a.resume:
        data = Data(tokenizer, processor, numpy.random.default_rng(a.seed))
        model = make_model(tokenizer.get_vocab_size())
        say(f"{sum(p.numel() for p in model.parameters())} parameters, {tokenizer.get_vocab_size()} tokens")
        probe = Probe(model.config.text_config.hidden_size)
        train_tower(model, probe, data, a.tower_steps, a.batch, a.rate, say)
        train_all(model, probe, data, a.steps, a.batch, a.rate, say)
        save(model, a.out)
    # Each from the file and with numbers of its own, so that it is the same whether the lessons before ran just now.
    lessons = [("relations", a.relation_steps, 0.0), ("gains", a.gain_steps, GAIN)]
    for number, (name, steps, gain) in enumerate(lessons, 1):
        if name == "relations" and a.resume == "gains":
            continue
        model = Gemma3ForConditionalGeneration.from_pretrained(a.out, dtype=torch.float32).train()
        data = Data(tokenizer, processor, numpy.random.default_rng([a.seed, number]))
        train_relations(model, data, steps, a.batch, a.rate / 2, say, name, gain)
        save(model, a.out)
    say(f"trained and saved in {time.time() - start:.0f} s; model.safetensors has {(a.out / 'model.safetensors').stat().st_size} bytes")


if __name__ == "__main__":
    main()
