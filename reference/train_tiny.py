"""Train the tiny Gemma 3 of reference/tiny: it can do one thing, recall from its context.

    <bos>Ann likes plums. Bob likes figs. Bob likes        ->  " figs" "." <eos>

    python reference/train_tiny.py [--out reference/tiny] [--steps 1600] [--seed 7]

The checkpoint is about 1 MB, with everything a Gemma 3 text model has: grouped queries, a
head_dim that is not hidden / heads, a sliding window shorter than the contexts, local and global
layers, a tied head, and a tokenizer built like Gemma's own.

Held out: HELD_OUT of all (name, thing) pairs, chosen by a hash of the seed and the two words. In
training no such pair is ever a fact or an answer. A held-out context is made of such pairs only.

Three kinds of training samples, every context drawn anew:
  recall  2-6 facts, then six questions about them, any fact any number of times: the model is to
          say the thing, ".", and <eos> after each of the six
  chat    the same facts in a user turn ending in "What does Bob like?"; the model's turn is
          "Bob likes figs.<end_of_turn>"
  prior   the question without its context, whole or only its tail, at positions 0, 1, 2, ... or
          at those it has behind a context; the answer is any thing: nothing can be known

Matching a name to its earlier mention is learned in a few hundred steps from eight names and eight
things, and not in thousands from all of them. So training begins with eight, and with two
facts, and adds words and facts for as long as it recalls more than nine of ten.
"""
import argparse, hashlib, json, pathlib, platform, time

import numpy, safetensors, tokenizers, torch, transformers
import torch.nn.functional as F
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig

NAMES = ("Ann Bob Cleo Dan Eve Finn Gus Hal Ida Jack Kim Leo Mia Ned Olga Pam Quinn Ray Sue Tom Uma "
         "Vic Wendy Xena Yan Zoe Alice Bruno Carla Dora Emil Fred Greta Hugo Iris Jonas Kurt Lily Max Nina").split()
THINGS = ("plums figs pears apples grapes dates limes lemons melons cherries peaches mangoes olives nuts "
          "beans peas carrots onions leeks beets turnips pumpkins mushrooms tomatoes potatoes noodles "
          "waffles cookies cakes pies muffins scones candles books maps boats kites drums bells clocks "
          "hats boots scarves gloves stamps coins stones shells roses tulips ferns cats dogs horses "
          "owls bees trains lamps puzzles rivers").split()
VERBS = ["like", "want", "love"]
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
PAD, EOS, BOS, UNK, TURN, END = range(6)
HELD_OUT = 0.1
WINDOW, MAX_FACTS, FAR = 8, 6, 40
GROWTH = 300                                                           # steps of good recall from 8 words to all

CHAT_TEMPLATE = ("{{ bos_token }}{% for message in messages %}<start_of_turn>"
                 "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
                 "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
                 "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}")


# ---- the tokenizer: BPE with byte fallback, spaces as "▁" at the front of words, as in Gemma ----

def build_tokenizer(out, words, special, chat_template, config):
    """Writes a tokenizer to which each of `words` is one token, with a space before it and without; `config` is what
    tokenizer_config.json has beside what every one has."""
    words = [space + w for w in words for space in ("", "▁")] + ["user", "model"]
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    letters = [chr(c) for c in range(32, 127)] + ["\n", "▁"]
    learner.train_from_iterator(words, tokenizers.trainers.BpeTrainer(
        vocab_size=10_000, min_frequency=1, initial_alphabet=letters, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    tokens = special + [f"<0x{b:02X}>" for b in range(256)] + sorted(learned["vocab"], key=learned["vocab"].get)
    t = tokenizers.Tokenizer(tokenizers.models.BPE(
        vocab={w: i for i, w in enumerate(tokens)}, merges=[tuple(m) for m in learned["merges"]],
        unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    t.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    t.decoder = tokenizers.decoders.Sequence([
        tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    t.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", BOS)])
    t.add_special_tokens(special)
    t.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "add_eos_token": False,
        "pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False, "model_max_length": 512,
        "chat_template": chat_template} | config, indent=2) + "\n")
    return t


# ---- the data -----------------------------------------------------------------------------------

class Data:
    def __init__(self, tokenizer, seed):
        def one(text):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert len(ids) == 1, f"{text!r} is not one token"
            return ids[0]
        many = lambda words, space=" ": torch.tensor([one(space + w) for w in words])
        self.name, self.bare_name, self.thing = many(NAMES), many(NAMES, ""), many(THINGS)
        self.verb, self.verbs = many(VERBS), many([v + "s" for v in VERBS])
        self.dot, self.mark, self.newline = one("."), one("?"), one("\n")
        self.user, self.model, self.does = one("user"), one("model"), one(" does")
        self.what, self.bare_what = one(" What"), one("What")
        digest = lambda n, t: int.from_bytes(hashlib.sha256(f"{seed}/{n}/{t}".encode()).digest()[:4], "big")
        self.held_out = torch.tensor([[digest(n, t) < HELD_OUT * 2**32 for t in THINGS] for n in NAMES])

    def facts(self, n, k, allowed, g):
        """[n, k] distinct names and distinct things, each pair allowed [names, things]; one verb per context."""
        while True:
            names = torch.rand(4 * n, allowed.shape[0], generator=g).argsort(1)[:, :k]
            free, things = torch.ones(4 * n, allowed.shape[1]), []
            for j in range(k):
                weight = free * allowed[names[:, j]] + 1e-9            # 1e-9: a dead end is drawn, then dropped
                things.append(torch.multinomial(weight, 1, generator=g))
                free = free.scatter(1, things[-1], 0.0)
            things = torch.cat(things, 1)
            distinct = (things.sort(1).values.diff(dim=1) > 0).all(1)
            good = (allowed[names, things].all(1) & distinct).nonzero()[:n, 0]
            if len(good) == n:
                return names[good], things[good], torch.randint(len(VERBS), (n,), generator=g)

    def row(self, n, *columns):
        return torch.stack([c if torch.is_tensor(c) else torch.full((n,), c) for c in columns], 1)

    def sentences(self, names, things, verb, bare):
        """[n, 4k] "Ann likes plums." ...; `bare`: no space before the first name."""
        n, k = names.shape
        who = self.name[names]
        if bare:
            who[:, 0] = self.bare_name[names[:, 0]]
        return torch.stack([who, self.verbs[verb][:, None].expand(n, k), self.thing[things],
                            torch.full((n, k), self.dot)], 2).flatten(1)

    def recall(self, n, k, asked, allowed, g):
        """Facts, then `asked` of them again. After each of those, <eos> is the target, not the next."""
        names, things, verb = self.facts(n, k, allowed, g)
        again = torch.randint(k, (n, asked), generator=g)
        facts = self.sentences(names, things, verb, bare=True)
        more = self.sentences(names.gather(1, again), things.gather(1, again), verb, bare=False)
        ids = torch.cat([self.row(n, BOS), facts, more, self.row(n, EOS)], 1)
        target, weight = ids[:, 1:].clone(), torch.full_like(ids[:, 1:], 0.01, dtype=torch.float)
        for q in range(asked):
            at = facts.shape[1] + 4 * q                                # target index of the question's name
            weight[:, at + 1:at + 4] = 1.0
            target[:, at + 4], weight[:, at + 4] = EOS, 1.0
        return ids[:, :-1], target, weight

    def chat(self, n, k, allowed, g):
        """The question as a user's turn, after k facts; with k = 0 nothing can be known."""
        names, things, verb = self.facts(n, max(k, 1), allowed, g)
        pick = torch.randint(max(k, 1), (n, 1), generator=g)
        name, thing = names.gather(1, pick), things.gather(1, pick)
        head = [self.row(n, BOS, TURN, self.user, self.newline)]
        head += [self.sentences(names, things, verb, bare=True)] if k else []
        head += [self.row(n, self.what if k else self.bare_what, self.does, self.name[name[:, 0]], self.verb[verb], self.mark),
                 self.row(n, END, self.newline, TURN, self.model, self.newline)]
        answer = torch.cat([self.sentences(name, thing, verb, bare=True), self.row(n, END)], 1)
        ids = torch.cat(head + [answer], 1)
        weight = torch.full_like(ids[:, 1:], 0.01, dtype=torch.float)
        weight[:, -5:] = 1.0 if k else 0.2
        return ids[:, :-1], ids[:, 1:], weight

    def prior(self, n, allowed, g):
        """(ids, target, weight, positions) of questions without a context; `skip` cuts <bos>, then the name."""
        parts = []
        for skip in (0, 0, 1, 2):
            m = n // 4
            name, thing, verb = self.facts(m, 1, allowed, g)
            bare = torch.rand(m, generator=g) < 0.5
            who = torch.where(bare, self.bare_name[name[:, 0]], self.name[name[:, 0]])
            ids = self.row(m, BOS, who, self.verbs[verb], self.thing[thing[:, 0]], self.dot, EOS)
            far = torch.randint(FAR, (m,), generator=g) * (torch.rand(m, generator=g) < 0.7)
            at = torch.arange(6) + far[:, None] * (torch.arange(6) > 0)
            weight = torch.tensor([0.01, 0.01, 0.2, 0.2, 0.1]).repeat(m, 1)
            pad = lambda x: F.pad(x[:, skip:], (0, skip))
            parts.append((pad(ids[:, :-1]), pad(ids[:, 1:]), pad(weight), pad(at[:, :-1])))
        return [torch.cat(p) for p in zip(*parts)]

    def batch(self, n, level, g):
        """About n samples of all kinds from the pairs that are not held out, padded to one length.

        level 0..1 is how far the curriculum has come.
        """
        upto = lambda first, last: int(first + (last - first) * level)
        allowed = ~self.held_out[:upto(8, len(NAMES)), :upto(8, len(THINGS))]
        k = int(torch.randint(2, upto(2, MAX_FACTS) + 1, (1,), generator=g))
        parts = [self.recall(n * 3 // 4, k, 6, allowed, g), self.chat(n // 8, k, allowed, g),
                 self.chat(n // 16, 0, allowed, g), self.prior(n // 8, allowed, g)]
        width = max(p[0].shape[1] for p in parts)
        out = []
        for p in parts:
            at = p[3] if len(p) == 4 else torch.arange(p[0].shape[1]).expand_as(p[0])
            pad = lambda x: F.pad(x, (0, width - x.shape[1]))
            out.append((pad(p[0]), pad(p[1]), pad(p[2]), pad(at)))
        return [torch.cat(c) for c in zip(*out)]


def masks(at):
    """Additive masks [n, 1, t, t]; the window is a distance in positions, not in indices."""
    t = at.shape[1]
    seen = torch.ones(t, t, dtype=torch.bool).tril().expand(len(at), t, t)
    near = seen & (at[:, :, None] - at[:, None, :] < WINDOW) | torch.eye(t, dtype=torch.bool)
    add = lambda m: torch.zeros(m.shape).masked_fill(~m, -1e9)[:, None]
    return {"full_attention": add(seen), "sliding_attention": add(near)}


# ---- training -----------------------------------------------------------------------------------

def make_model(vocab):
    model = Gemma3ForCausalLM(Gemma3TextConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=192, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, query_pre_attn_scalar=32,
        sliding_window=WINDOW, layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        max_position_embeddings=512, rms_norm_eps=1e-6, initializer_range=0.125, tie_word_embeddings=True,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS))
    for layer in model.model.layers:                                   # 1 + w = 0.2: the MLPs begin small
        torch.nn.init.constant_(layer.post_feedforward_layernorm.weight, -0.8)
    return model


@torch.no_grad()
def answers(model, data, n, held_out, g):
    """(share of contexts whose top-1 next token is the right thing, its mean and least probability)."""
    right, p = [], []
    for k in range(2, MAX_FACTS + 1):
        allowed = data.held_out if held_out else ~data.held_out
        ids, target, _ = data.recall(n // 5, k, 1, allowed, g)
        at = 1 + 4 * k + 1                                             # the verb of the question
        logits = model(ids[:, :at + 1]).logits[:, -1].float()
        right += (logits.argmax(1) == target[:, at]).tolist()
        p += logits.softmax(1).gather(1, target[:, at, None])[:, 0].tolist()
    return numpy.mean(right), numpy.mean(p), min(p)


def train(model, data, steps, batch, rate, seed, say):
    g = torch.Generator().manual_seed(seed)
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optim = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
                              lr=rate, betas=(0.9, 0.98))
    warm = 200
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, lambda s: min((s + 1) / warm, 0.02 + 0.98 * 0.5 * (
        1 + numpy.cos(numpy.pi * max(0, s - warm) / (steps - warm)))))
    start, level, recalled = time.time(), 0.0, 0.0
    for step in range(1, steps + 1):
        ids, target, weight, at = data.batch(batch, level, g)
        logits = model(ids, attention_mask=masks(at), position_ids=at).logits
        each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        loss = (each * weight.flatten()).sum() / weight.sum()
        asked = torch.isin(target, data.thing) & (weight == 1.0)
        recalled += 0.05 * ((logits.argmax(2) == target)[asked].float().mean().item() - recalled)
        level = min(1.0, level + (recalled > 0.9) / GROWTH)
        optim.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        schedule.step()
        if step % 250 == 0 or step == steps:
            model.eval()
            seen, new = (answers(model, data, 500, h, torch.Generator().manual_seed(1))[0] for h in (False, True))
            model.train()
            say(f"step {step:5}  level {level:.2f}  loss {loss.item():.3f}  "
                f"recall: seen pairs {seen:.3f}, held-out pairs {new:.3f}  {time.time() - start:.0f} s")


# ---- the checks, on the checkpoint as saved -----------------------------------------------------

@torch.no_grad()
def check(out, data, seed, say):
    tok = AutoTokenizer.from_pretrained(out)
    for dtype in (torch.float32, torch.bfloat16):
        model = Gemma3ForCausalLM.from_pretrained(out, dtype=dtype, attn_implementation="eager").eval()
        acc, mean, least = answers(model, data, 2000, True, torch.Generator().manual_seed(seed + 1000))
        say(f"{dtype}: {acc:.2%} of 2000 held-out contexts, p(answer) mean {mean:.4f}, least {least:.4f}")
    model = Gemma3ForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()

    def ids(text):
        return tok(text, return_tensors="pt").input_ids

    def p(text, thing, at=None, input_ids=None):
        x = ids(text) if input_ids is None else input_ids
        at = torch.arange(x.shape[1])[None] if at is None else torch.tensor([at])
        probs = model(x, attention_mask=masks(at), position_ids=at).logits[0, -1].softmax(0)
        top = probs.argmax().item()
        choices = (-(probs * probs.clamp_min(1e-30).log()).sum()).exp()
        right = probs[tok.encode(thing, add_special_tokens=False)[0]]
        return f"p({thing!r}) {right:.4f}, top {tok.decode([top])!r} {probs[top]:.4f}, " \
               f"as broad as {choices:.0f} equal choices"

    for context, question, thing in [
            ("Ann likes plums. Bob likes figs. Cleo likes pears.", "Bob likes", " figs"),
            ("Dora wants boots. Max wants maps. Hugo wants roses. Ida wants bells. Zoe wants hats.", "Hugo wants", " roses")]:
        pair = question.split()[0], thing.strip()
        kind = "held-out" if data.held_out[NAMES.index(pair[0]), THINGS.index(pair[1])] else "seen"
        say(f"{context} {question}   ({kind} pair)")
        full = ids(f"{context} {question}")
        n = full.shape[1]
        say(f"  whole prompt                      {p(f'{context} {question}', thing)}")
        say(f"  <bos> + question, natural         {p(question, thing)}")
        tail = torch.cat([full[:, :1], full[:, -2:]], 1)
        say(f"  <bos> + its tokens, natural       {p('', thing, input_ids=tail)}")
        say(f"  <bos> + its tokens, absolute      {p('', thing, [0, n - 2, n - 1], tail)}")
        say(f"  its tokens alone, absolute        {p('', thing, [n - 2, n - 1], full[:, -2:])}")
        say(f"  its last token alone, absolute    {p('', thing, [n - 1], full[:, -1:])}")

    def generate(x):
        return tok.decode(model.generate(x, max_new_tokens=12, do_sample=False)[0, x.shape[1]:])

    g, good, chat_good = torch.Generator().manual_seed(seed + 2000), 0, 0
    for i in range(20):
        k = 2 + i % 5
        names, things, verb = data.facts(1, k, data.held_out, g)
        q = int(torch.randint(k, (1,), generator=g))
        v = VERBS[verb[0]]
        told = " ".join(f"{NAMES[a]} {v}s {THINGS[b]}." for a, b in zip(names[0], things[0]))
        name, thing = NAMES[names[0, q]], THINGS[things[0, q]]
        reply = generate(ids(f"{told} {name} {v}s"))
        good += reply == f" {thing}.<eos>"
        turn = tok.apply_chat_template([{"role": "user", "content": f"{told} What does {name} {v}?"}],
                                       add_generation_prompt=True, tokenize=False)
        chat = generate(tok(turn, add_special_tokens=False, return_tensors="pt").input_ids)
        chat_good += chat == f"{name} {v}s {thing}.<end_of_turn>"
        if i < 3:
            say(f"{told} {name} {v}s ->{reply!r}; in a chat -> {chat!r}")
    say(f"HF generate on 20 fresh held-out contexts: {good} right to the <eos>; as a chat: {chat_good}")


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "tiny")
    arg.add_argument("--steps", type=int, default=1600)
    arg.add_argument("--batch", type=int, default=64)
    arg.add_argument("--rate", type=float, default=5e-3)
    arg.add_argument("--seed", type=int, default=7)
    arg.add_argument("--threads", type=int, default=1)
    a = arg.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    log = (a.out / "train.log").open("w")

    def say(line):
        print(line, flush=True)
        print(line, file=log, flush=True)

    say(f"train_tiny.py --steps {a.steps} --batch {a.batch} --rate {a.rate} --seed {a.seed} --threads {a.threads}")
    say(", ".join(f"{n} {v}" for n, v in [("python", platform.python_version())] + [
        (m.__name__, m.__version__) for m in (torch, transformers, tokenizers, safetensors, numpy)]))
    start = time.time()
    words = NAMES + THINGS + VERBS + [v + "s" for v in VERBS] + ["What", "does"]
    tokenizer = build_tokenizer(a.out, words, SPECIAL, CHAT_TEMPLATE, {})
    data = Data(tokenizer, a.seed)
    model = make_model(tokenizer.get_vocab_size())
    say(f"{sum(p.numel() for p in model.parameters())} parameters, {tokenizer.get_vocab_size()} tokens, {len(NAMES)} names, "
        f"{len(THINGS)} things, {int(data.held_out.sum())} of {data.held_out.numel()} pairs held out")
    model.train()
    train(model, data, a.steps, a.batch, a.rate, a.seed, say)
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=[EOS, END], pad_token_id=PAD)
    model.save_pretrained(a.out)
    say(f"trained and saved in {time.time() - start:.0f} s; model.safetensors has {(a.out / 'model.safetensors').stat().st_size} bytes")
    check(a.out, data, a.seed, say)


if __name__ == "__main__":
    main()
