#!/usr/bin/env python3
"""What OpenAI's own client, LangChain's and curl make of `context-patch serve`.

    pip install openai langchain-openai
    cargo build --release && python3 reference/check_serve.py [MODEL] > reference/check_serve.txt

Each line is something that was asked and what must hold of the answer; a control at the end shows that what is checked can fail.
Run by hand: it takes a minute.
"""

import datetime
import json
import math
import subprocess
import sys
import tempfile
from importlib.metadata import version

import openai
from langchain_openai import ChatOpenAI, OpenAI as LangChainCompletion
from openai import OpenAI

from program import PROGRAM

MODEL = sys.argv[1] if len(sys.argv) > 1 else "reference/tiny"
PROMPT = "Ann likes plums. Bob likes figs. Bob likes"
MESSAGES = [{"role": "user", "content": "Ann likes plums. Bob likes figs. What does Bob like?"}]
failed = 0


def check(what, holds, shown=""):
    """A line of the output."""
    global failed
    failed += not holds
    print(f"{'ok  ' if holds else 'FAIL'}  {what}{': ' if shown else ''}{shown}")


def refused(kind, call):
    """The error of this class that a call must raise."""
    try:
        call()
    except kind as error:
        return error
    return None


def completions(client, model):
    def ask(**more):
        return client.completions.create(**{"model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": 8} | more)

    whole = ask()
    text = whole.choices[0].text
    check("completion", whole.object == "text_completion" and bool(text), repr(text))
    check("usage", whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens,
          f"{whole.usage.prompt_tokens} + {whole.usage.completion_tokens} tokens")
    pieces = list(ask(stream=True, stream_options={"include_usage": True}))
    streamed = "".join(piece.choices[0].text for piece in pieces if piece.choices)
    check("streamed completion", streamed == text, f"{len(pieces)} events")
    check("usage of a stream", pieces[-1].usage == whole.usage and not pieces[-1].choices)
    stop = text[2:5]
    check("stop", ask(stop=stop).choices[0].text == text[: text.index(stop)], repr(stop))
    several = ask(n=3, temperature=1.5, seed=1)
    check("n", [choice.index for choice in several.choices] == [0, 1, 2] and several.choices == ask(n=3, temperature=1.5, seed=1).choices,
          str([choice.text for choice in several.choices]))
    both = ask(prompt=[PROMPT, "Ann likes plums. Ann likes"])
    check("several prompts", both.choices[0].text == text and len(both.choices) == 2, repr(both.choices[1].text))
    logs = ask(logprobs=2, echo=True).choices[0]
    tokens, values = logs.logprobs.tokens, logs.logprobs.token_logprobs
    check("logprobs with echo", logs.text == PROMPT + text and values[0] is None and all(v <= 0 for v in values[1:])
          and "".join(tokens[1:]).endswith(text), f"{len(tokens)} tokens")
    check("logprobs of the likeliest", all(value == max(top.values()) for value, top in
          zip(values[-2:], logs.logprobs.top_logprobs[-2:])))
    biased = ask(logit_bias={str(i): -100 for i in range(1, 9)}, presence_penalty=1, frequency_penalty=1, top_p=0.9)
    check("biases and penalties", bool(biased.choices[0].text))
    extra = ask(temperature=1, seed=3, extra_body={"top_k": 1})
    check("top_k", extra.choices[0].text == text)


def chats(client, model):
    def ask(**more):
        return client.chat.completions.create(**{"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": 24} | more)

    whole = ask()
    answer = whole.choices[0]
    check("chat", whole.object == "chat.completion" and answer.message.role == "assistant", repr(answer.message.content))
    pieces = list(ask(stream=True))
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    check("streamed chat", streamed == answer.message.content and pieces[0].choices[0].delta.role == "assistant"
          and pieces[-1].choices[0].finish_reason == answer.finish_reason, answer.finish_reason)
    logs = ask(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    check("logprobs", "".join(log.token for log in logs) == answer.message.content and all(
        len(log.top_logprobs) == 3 and bytes(log.bytes).decode() == log.token and math.exp(log.logprob) <= 1 for log in logs))
    parts = [{"role": "user", "content": [{"type": "text", "text": MESSAGES[0]["content"]}]}]
    check("parts of text", ask(messages=parts).choices[0].message.content == answer.message.content)
    # A conversation that goes on.
    more = MESSAGES + [{"role": "assistant", "content": answer.message.content}, {"role": "user", "content": "And Ann?"}]
    check("a second turn", bool(ask(messages=more).choices[0].message.content))


def errors(client, model):
    def create(**more):
        return lambda: client.completions.create(**{"model": model, "prompt": "x"} | more)

    for what, kind, call, param in [
        ("unknown model", openai.NotFoundError, create(model="gpt-0"), "model"),
        ("wrong value", openai.BadRequestError, create(temperature=9), "temperature"),
        ("too long", openai.BadRequestError, create(prompt="figs " * 40000), "prompt"),
        ("tools", openai.BadRequestError, lambda: client.chat.completions.create(
            model=model, messages=MESSAGES, tools=[{"type": "function", "function": {"name": "f"}}]), "tools"),
        ("JSON mode", openai.BadRequestError, lambda: client.chat.completions.create(
            model=model, messages=MESSAGES, response_format={"type": "json_object"}), "response_format"),
        ("wrong key", openai.AuthenticationError, lambda: client.with_options(api_key="wrong").models.list(), None),
    ]:
        error = refused(kind, call)
        check(f"{what} is a {kind.__name__}", error is not None and error.param == param, error and error.body["message"])


def langchain(base, key, model):
    chat = ChatOpenAI(base_url=base, api_key=key, model=model, temperature=0, max_tokens=24)
    said = chat.invoke(MESSAGES[0]["content"])
    check("LangChain chat", bool(said.content), repr(said.content))
    streamed = "".join(piece.content for piece in chat.stream(MESSAGES[0]["content"]))
    check("LangChain stream", streamed == said.content)
    batch = chat.batch([MESSAGES[0]["content"]] * 5)
    check("LangChain batch", [answer.content for answer in batch] == [said.content] * 5)
    completion = LangChainCompletion(base_url=base, api_key=key, model=model, temperature=0, max_tokens=8)
    check("LangChain completion", bool(completion.invoke(PROMPT)))


def curl(base, key, model):
    def run(path, *arguments):
        done = subprocess.run(["curl", "-sS", "-H", f"Authorization: Bearer {key}", *arguments, base + path],
                              capture_output=True, text=True, check=True)
        return done.stdout

    body = json.dumps({"model": model, "prompt": PROMPT, "temperature": 0, "stream": True})
    events = run("/completions", "-N", "-d", body).strip().split("\n\n")
    check("curl stream", events[-1] == "data: [DONE]" and all(event.startswith("data: ") for event in events), events[0][:60] + "…")
    check("curl models", json.loads(run("/models"))["data"][0]["id"] == model)
    large = json.dumps({"prompt": "x" * (2 << 20)})
    status = subprocess.run(["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"Authorization: Bearer {key}", "-d", "@-",
                             base + "/completions"], input=large, capture_output=True, text=True).stdout
    check("curl with two megabytes", status == "413", status)


def main():
    key = "a key of the check"
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
        file.write(key + "\n")
        file.flush()
        server = subprocess.Popen([PROGRAM, "serve", "--model", MODEL, "--listen", "127.0.0.1:0", "--api-key-file", file.name],
                                  stdout=subprocess.PIPE, text=True)
        try:
            base = server.stdout.readline().strip().removeprefix("listening on ") + "/v1"
            client = OpenAI(base_url=base, api_key=key, max_retries=0)
            model = client.models.list().data[0].id
            print(f"{datetime.date.today()}, {model}, openai {version('openai')}, langchain-openai {version('langchain-openai')}, "
                  f"{subprocess.run(['curl', '--version'], capture_output=True, text=True).stdout.split(' (')[0]}\n")
            check("models.retrieve", client.models.retrieve(model).id == model)
            completions(client, model)
            chats(client, model)
            errors(client, model)
            langchain(base, key, model)
            curl(base, key, model)
            before = failed
            check("the control, which must fail", client.completions.create(model=model, prompt=PROMPT).choices[0].text == "no such text")
            print(f"\n{before} failed besides the control")
            sys.exit(before > 0 or failed == before)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
