//! `context-patch serve`: what it says, to how many, and what it does when it is not treated well.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;
#[path = "common/server.rs"]
mod server;

use std::io::{Read, Write};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use common::open;
use context_patch::model::LogProbabilities;
use context_patch::model::generate::{Sampler, Stop, generate};
use context_patch::patch::{Overlay, SavedPatch};
use context_patch::{Model, Session};
use serde_json::{Value, json};
use server::Server;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/reference/tiny");

static MODEL: LazyLock<Model> = LazyLock::new(|| open("tiny"));

/// A bias that keeps the model from ending.
fn no_end() -> Value {
    let ends = MODEL.checkpoint().eos_token_ids().iter();
    ends.map(|id| (id.to_string(), json!(-100)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// 490 tokens of which none is an end token.
fn long() -> Value {
    json!({ "prompt": "Ann likes", "max_tokens": 490, "temperature": 2, "seed": 5, "logit_bias": no_end() })
}

/// A request, and more parameters.
fn with(mut request: Value, more: Value) -> Value {
    let Value::Object(more) = more else {
        panic!("{more}")
    };
    request.as_object_mut().unwrap().extend(more);
    request
}

/// Sixteen requests that differ: likeliest and drawn, short prompts and long ones.
fn requests() -> Vec<Value> {
    let request = |i: usize| {
        let prompt = "Bob likes figs. ".repeat(1 + 7 * (i % 4)) + "Bob likes";
        let temperature = [0.0, 0.7, 2.0][i % 3];
        let request = json!({
            "prompt": prompt, "max_tokens": 20 + 5 * i, "temperature": temperature, "seed": i,
            "presence_penalty": 0.1 * (i % 5) as f64,
        });
        if i.is_multiple_of(2) {
            with(request, json!({ "logit_bias": no_end() }))
        } else {
            request
        }
    };
    (0..16).map(request).collect()
}

/// What the library alone gives for a request: the text, and why it ends.
fn expected(request: &Value) -> (String, &'static str) {
    let tokenizer = MODEL.checkpoint().tokenizer().unwrap();
    let prompt = tokenizer
        .encode(request["prompt"].as_str().unwrap())
        .unwrap();
    let temperature = request["temperature"].as_f64().unwrap();
    let mut sampler = Sampler::new(temperature, 0, 1.0, request["seed"].as_u64().unwrap());
    sampler.presence_penalty = request["presence_penalty"].as_f64().unwrap_or(0.0);
    let bias = request["logit_bias"].as_object().into_iter().flatten();
    sampler.logit_bias = bias
        .map(|(id, bias)| (id.parse().unwrap(), bias.as_f64().unwrap()))
        .collect();
    let max_tokens = request["max_tokens"].as_u64().unwrap() as usize;
    let (mut stream, mut text) = (tokenizer.stream(), String::new());
    let mut session = Session::<f32>::new(&MODEL);
    let on_token = |id| -> context_patch::Result<()> {
        text += &stream.push(id)?;
        Ok(())
    };
    let stop = generate(&mut session, &prompt, max_tokens, &mut sampler, on_token).unwrap();
    text += &stream.finish().unwrap();
    let stop = if stop == Stop::End { "stop" } else { "length" };
    (text, stop)
}

/// The text of a stream of completions, and why it ends.
fn streamed(events: &[Value]) -> (String, String) {
    let text = events
        .iter()
        .filter_map(|event| event["choices"][0]["text"].as_str());
    let finish = events
        .iter()
        .filter_map(|event| event["choices"][0]["finish_reason"].as_str());
    (text.collect(), finish.collect())
}

#[test]
fn the_same_as_the_library_alone_and_among_sixteen() {
    let server = Server::start(TINY, &["--threads", "2", "--sequences", "5"]);
    let requests = requests();
    let want: Vec<_> = requests.iter().map(expected).collect();
    assert!(
        ["stop", "length"]
            .iter()
            .all(|end| want.iter().any(|(_, stop)| stop == end))
    );
    let ask = |i: usize| {
        let whole = server.complete(&requests[i]);
        let finish = &whole.json()["choices"][0]["finish_reason"];
        assert_eq!(
            (whole.text(), finish.as_str().unwrap()),
            (want[i].0.clone(), want[i].1)
        );
        let stream = server.complete(&with(requests[i].clone(), json!({ "stream": true })));
        let (text, finish) = streamed(&stream.events());
        assert_eq!((&text, &*finish), (&want[i].0, want[i].1));
    };
    (0..16).for_each(ask);
    thread::scope(|scope| {
        for client in 0..16 {
            scope.spawn(move || (0..3).for_each(|round| ask((client + 5 * round) % 16)));
        }
    });
    // Two that compute, one that waits for them, one that talks, two that read prompts, and one that waits for signals.
    assert!(server.threads().is_none_or(|threads| threads <= 7));
    // The control: another seed, another text.
    let other = with(requests[2].clone(), json!({ "seed": 99 }));
    assert_ne!(server.complete(&other).text(), want[2].0);
}

#[test]
fn answers_to_several_prompts_are_those_to_each() {
    let server = Server::start(TINY, &["--sequences", "3"]);
    let draw = json!({ "temperature": 1.5, "seed": 3, "max_tokens": 12, "n": 4 });
    let ask = |prompt: Value| server.complete(&with(draw.clone(), json!({ "prompt": prompt })));
    let (ann, bob) = (ask(json!("Ann likes")), ask(json!("Bob likes")));
    let both = ask(json!(["Ann likes", "Bob likes"]));
    assert_eq!(both.texts(), [ann.texts(), bob.texts()].concat());
    let [first, rest @ ..] = &ann.texts()[..] else {
        panic!()
    };
    assert!(rest.iter().any(|text| text != first), "{rest:?}");
    // The first of several is the only one of one.
    let one = with(draw.clone(), json!({ "prompt": "Ann likes", "n": 1 }));
    assert_eq!(server.complete(&one).text(), *first);
    let tokenizer = MODEL.checkpoint().tokenizer().unwrap();
    let ids = tokenizer.encode("Ann likes").unwrap();
    assert_eq!(ask(json!([ids])).texts(), ann.texts());
    let usage = both.json()["usage"].clone();
    assert_eq!(usage["prompt_tokens"], 2 * ids.len());
    let stream = with(
        draw,
        json!({ "prompt": "Ann likes", "stream": true, "stream_options": { "include_usage": true } }),
    );
    let events = server.complete(&stream).events();
    let mut texts = vec![String::new(); 4];
    for event in &events[..events.len() - 1] {
        let choice = &event["choices"][0];
        assert!(event["usage"].is_null());
        texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    assert_eq!(texts, ann.texts());
    assert_eq!(events[events.len() - 1]["usage"], ann.json()["usage"]);
}

#[test]
fn a_seed_that_was_drawn_gives_the_answer_again() {
    let server = Server::start(TINY, &[]);
    let request = json!({ "prompt": "Ann likes", "temperature": 2, "max_tokens": 20 });
    let first = server.complete(&request);
    let seed = first
        .head
        .lines()
        .find_map(|line| line.strip_prefix("x-seed: "));
    let seed: u64 = seed.unwrap().parse().unwrap();
    let again = server.complete(&with(request.clone(), json!({ "seed": seed })));
    assert_eq!(again.text(), first.text());
    assert!((0..9).any(|_| server.complete(&request).text() != first.text()));
}

#[test]
fn log_probabilities_are_the_models() {
    let server = Server::start(TINY, &[]);
    let prompt = "Ann likes plums. Bob likes figs. Bob likes";
    let request =
        json!({ "prompt": prompt, "temperature": 0, "max_tokens": 3, "logprobs": 2, "echo": true });
    let choice = server.complete(&request).json()["choices"][0].clone();
    let tokenizer = MODEL.checkpoint().tokenizer().unwrap();
    let mut ids = tokenizer.encode(prompt).unwrap();
    ids.extend(tokenizer.encode_more(" figs.").unwrap());
    let logits = Session::<f32>::new(&MODEL)
        .forward(&ids, ids.len())
        .unwrap();
    let logprobs = &choice["logprobs"];
    assert_eq!(
        logprobs["token_logprobs"].as_array().unwrap().len(),
        ids.len()
    );
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    let text = choice["text"].as_str().unwrap();
    assert_eq!(text, format!("{prompt} figs."));
    for (i, id) in ids.iter().enumerate().skip(1) {
        let log = LogProbabilities::new(logits.row(i - 1));
        assert_eq!(logprobs["token_logprobs"][i], log.of(*id));
        let token = String::from_utf8(tokenizer.token_bytes(*id).unwrap()).unwrap();
        assert_eq!(logprobs["tokens"][i], *token);
        let offset = logprobs["text_offset"][i].as_u64().unwrap() as usize;
        assert!(text[offset..].starts_with(&token), "{offset} {token}");
        for likely in log.likeliest(2) {
            let token = String::from_utf8(tokenizer.token_bytes(likely).unwrap()).unwrap();
            assert_eq!(logprobs["top_logprobs"][i][token], log.of(likely));
        }
    }
    // Of the prompt alone, as evaluations ask for it.
    let none = server.complete(&with(request, json!({ "max_tokens": 0 })));
    assert_eq!(none.text(), prompt);
    let chat = json!({ "messages": [{ "role": "user", "content": "Hi" }], "temperature": 0, "max_tokens": 4, "logprobs": true, "top_logprobs": 1 });
    let whole = server.chat(&chat).json();
    let content = whole["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    let tokens: String = content
        .iter()
        .map(|token| token["token"].as_str().unwrap())
        .collect();
    assert_eq!(tokens, whole["choices"][0]["message"]["content"]);
    for token in content {
        assert_eq!(token["token"], token["top_logprobs"][0]["token"]);
        assert_eq!(
            token["bytes"],
            json!(token["token"].as_str().unwrap().as_bytes())
        );
    }
    let events = server.chat(&with(chat, json!({ "stream": true }))).events();
    let streamed = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(&streamed.flatten().cloned().collect::<Vec<_>>(), content);
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(events[0]["object"], "chat.completion.chunk");
}

#[test]
fn a_stop_string_ends_an_answer_wherever_tokens_end() {
    let server = Server::start(TINY, &[]);
    let request = with(long(), json!({ "max_tokens": 60 }));
    let whole = server.complete(&request).text();
    let letters: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
    let mut within = 0;
    for at in [3, 11, 22, 35] {
        let stop = &whole[letters[at]..letters[at + 6]];
        let want = &whole[..whole.find(stop).unwrap()];
        let request = with(request.clone(), json!({ "stop": ["not in it", stop] }));
        let answer = server.complete(&request);
        assert_eq!(answer.text(), want, "{stop:?}");
        assert_eq!(answer.json()["choices"][0]["finish_reason"], "stop");
        let events = server
            .complete(&with(request, json!({ "stream": true })))
            .events();
        assert_eq!(streamed(&events), (want.to_owned(), "stop".into()));
        within += usize::from(
            !want.ends_with(char::is_whitespace) && !stop.starts_with(char::is_whitespace),
        );
    }
    assert!(within > 0, "every stop string begins where a word does");
}

#[test]
fn a_chat_is_what_the_template_makes_of_it() {
    let server = Server::start(TINY, &[]);
    let chat = server
        .chat(&json!({ "messages": [{ "role": "user", "content": "Hi" }], "temperature": 0 }));
    let template = MODEL.checkpoint().chat_template().unwrap();
    let user = context_patch::checkpoint::Message::user("Hi");
    let prompt = template
        .render(&context_patch::checkpoint::Conversation::new([user]))
        .unwrap();
    let ids = MODEL
        .checkpoint()
        .tokenizer()
        .unwrap()
        .encode_as_written(&prompt)
        .unwrap();
    let text = server.complete(&json!({ "prompt": ids, "temperature": 0, "max_tokens": 200 }));
    assert_eq!(chat.texts(), text.texts());
    let choice = &chat.json()["choices"][0];
    assert_eq!(
        (&choice["message"]["role"], &choice["message"]["refusal"]),
        (&json!("assistant"), &Value::Null)
    );
    let files = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(TINY).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, files.path().join(path.file_name().unwrap())).unwrap();
    }
    let settings = files.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&settings).unwrap()).unwrap();
    config
        .as_object_mut()
        .unwrap()
        .remove("chat_template")
        .unwrap();
    std::fs::write(&settings, config.to_string()).unwrap();
    let server = Server::start(files.path().to_str().unwrap(), &[]);
    let refused = server.chat(&json!({ "messages": [{ "role": "user", "content": "Hi" }] }));
    assert_eq!(refused.status, 400);
    assert!(
        refused.body.contains("send text to /v1/completions"),
        "{refused:?}"
    );
}

#[test]
fn a_beginning_that_was_computed_is_not_computed_again() {
    let server = Server::start(TINY, &[]);
    let none = Server::start(TINY, &["--prefix-mib", "0"]);
    let request = json!({ "prompt": "Bob likes figs. ".repeat(40), "temperature": 1, "seed": 1, "max_tokens": 30 });
    let ask = |server: &Server| {
        let answer = server.complete(&request);
        let usage = answer.json()["usage"].clone();
        (
            answer.text(),
            usage["prompt_tokens_details"]["cached_tokens"]
                .as_u64()
                .unwrap(),
        )
    };
    let (text, cached) = ask(&server);
    assert_eq!(cached, 0);
    let (again, cached) = ask(&server);
    assert!(cached > 100, "{cached}");
    assert_eq!(again, text);
    assert_eq!([ask(&none), ask(&none)], [(text.clone(), 0), (text, 0)]);
}

/// A patch of the tiny model, in a file.
fn patch(dir: &tempfile::TempDir) -> String {
    let file = dir.path().join("figs.patch");
    let done = common::program(dir.path())
        .args(["patch", "--model", TINY, "--output", file.to_str().unwrap()])
        .args([
            "--context",
            "Ann likes plums. Bob likes figs. Bob likes",
            "--keep",
            "0",
            "--positions",
            "natural",
        ])
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    file.to_str().unwrap().to_owned()
}

/// What the library gives for a text under a patch.
fn patched(file: &str, prompt: &str, max_tokens: usize) -> String {
    let saved = SavedPatch::load(file.as_ref()).unwrap();
    let overlay = Overlay::new(&MODEL, &saved.patch, saved.source.form());
    let tokenizer = MODEL.checkpoint().tokenizer().unwrap();
    let prompt = tokenizer.encode(prompt).unwrap();
    let mut session = Session::<f32>::new(&MODEL).with_overlay(&overlay);
    let mut ids = Vec::new();
    let on_token = |id| -> context_patch::Result<()> {
        ids.push(id);
        Ok(())
    };
    generate(
        &mut session,
        &prompt,
        max_tokens,
        &mut Sampler::default(),
        on_token,
    )
    .unwrap();
    tokenizer.decode(&ids).unwrap()
}

#[test]
fn a_patch_is_a_model_that_comes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let file = patch(&dir);
    let server = Server::start(TINY, &["--admin", "--patch", &format!("figs={file}")]);
    let ids = || {
        let models = server.request("GET", "/v1/models", "").json();
        let models = models["data"].as_array().unwrap().clone();
        models
            .iter()
            .map(|model| model["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(), ["tiny", "tiny+figs"]);
    let request = json!({ "prompt": " likes", "temperature": 0, "max_tokens": 20 });
    let ask = |model: &str| server.complete(&with(request.clone(), json!({ "model": model })));
    let (base, want) = (ask("tiny").text(), patched(&file, " likes", 20));
    assert_ne!(base, want);
    let mut running = server.send(
        "POST",
        "/v1/completions",
        &with(long(), json!({ "stream": true, "model": "tiny+figs" })).to_string(),
    );
    running.first_event();
    // Both in the same batch.
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(ask("tiny+figs").text(), want));
            scope.spawn(|| assert_eq!(ask("tiny").text(), base));
        }
    });
    let gone = server.request("DELETE", "/v1/patches/figs", "");
    assert_eq!((gone.status, ids()), (200, vec!["tiny".into()]));
    assert_eq!(ask("tiny+figs").status, 404);
    assert!(running.rest().contains("[DONE]"));
    let load = |name: &str, file: &str| {
        let body = json!({ "name": name, "file": file }).to_string();
        server.request("POST", "/v1/patches", &body)
    };
    assert_eq!(load("again", &file).status, 201);
    assert_eq!(ask("tiny+again").text(), want);
    for (refused, why) in [
        (load("again", &file), "already"),
        (load("a/b", &file), "letters, digits"),
        (load("new", "nowhere.patch"), "cannot read nowhere.patch"),
        (load("new", &format!("{TINY}/model.safetensors")), "patch"),
    ] {
        assert_eq!(refused.status, 400);
        assert!(refused.body.contains(why), "{refused:?}");
    }
    assert_eq!(server.request("DELETE", "/v1/patches/none", "").status, 404);
    // Nobody may where that was not allowed.
    let server = Server::start(TINY, &[]);
    let body = json!({ "name": "figs", "file": file }).to_string();
    assert_eq!(server.request("POST", "/v1/patches", &body).status, 404);
}

#[test]
fn who_has_no_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    std::fs::write(&file, "first\n\n second \n").unwrap();
    let server = Server::start(TINY, &["--api-key-file", file.to_str().unwrap()]);
    for (header, status) in [
        ("", 401),
        ("Authorization: Bearer third\r\n", 401),
        ("Authorization: first\r\n", 401),
        ("Authorization: Bearer first\r\n", 200),
        ("Authorization: Bearer second\r\n", 200),
    ] {
        let models = server.send_with("GET", "/v1/models", header, "").finish();
        assert_eq!(models.status, status, "{header}");
        let body = json!({ "prompt": "x", "max_tokens": 1 }).to_string();
        let answer = server
            .send_with("POST", "/v1/completions", header, &body)
            .finish();
        assert_eq!(answer.status, status, "{header}");
    }
    assert_eq!(server.request("GET", "/health", "").status, 200);
}

#[test]
fn other_pages_may_ask_only_where_that_was_allowed() {
    let header = "Origin: https://a.example\r\n";
    let server = Server::start(TINY, &["--cors", "https://a.example"]);
    let shared = server
        .send_with("OPTIONS", "/v1/completions", header, "")
        .finish();
    assert_eq!(shared.status, 204);
    assert!(
        shared
            .head
            .contains("access-control-allow-origin: https://a.example"),
        "{shared:?}"
    );
    let closed = Server::start(TINY, &[]);
    let closed = closed.send_with("GET", "/v1/models", header, "").finish();
    assert!(!closed.head.contains("access-control"), "{closed:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let small = [
        "--cache-mib",
        "1",
        "--body-kib",
        "4",
        "--sequences",
        "2",
        "--queue",
        "1",
    ];
    let server = Server::start(TINY, &small);
    let post = |body: Value| server.complete(&body);
    let raw = |body: &str| server.request("POST", "/v1/completions", body);
    for (response, status, reason) in [
        (
            post(json!({ "prompt": "figs ".repeat(300), "max_tokens": 500 })),
            400,
            "is the most that prompt and answer may have",
        ),
        (
            post(json!({ "prompt": "figs", "max_tokens": i64::MAX })),
            400,
            "context_length_exceeded",
        ),
        (
            post(json!({ "prompt": "figs", "n": 4 })),
            400,
            "4 answers, and the server takes at most 3",
        ),
        (
            post(json!({ "prompt": "figs ".repeat(1000) })),
            413,
            "4096 bytes",
        ),
        (
            post(json!({ "prompt": "x", "model": "gpt-4" })),
            404,
            "model_not_found",
        ),
        (
            post(json!({ "prompt": "x", "model": "reference+x" })),
            404,
            "GET /v1/models",
        ),
        (
            post(json!({ "prompt": "x", "tools": [1] })),
            400,
            "unsupported_parameter",
        ),
        (
            post(json!({ "prompt": "x", "temperature": -1 })),
            400,
            "from 0 to 2",
        ),
        (raw(""), 400, "not JSON"),
        (raw(&"[".repeat(4000)), 400, "not JSON"),
        (server.request("GET", "/", ""), 404, "/v1/completions"),
        (server.request("GET", "/v1/completions", ""), 405, "POST"),
        (server.request("GET", "/v1/models/x/y", ""), 404, "x/y"),
    ] {
        assert_eq!(response.status, status, "{response:?}");
        let error = &response.json()["error"];
        assert!(
            error["message"].is_string() && error["type"].is_string(),
            "{error}"
        );
        assert!(error.to_string().contains(reason), "{reason}: {error}");
    }
    assert_eq!(server.metric("generation_tokens_total"), 0);
    assert_eq!(
        post(json!({ "prompt": "figs", "max_tokens": 3 })).status,
        200
    );
}

#[test]
fn who_comes_when_all_places_are_taken_is_told_so() {
    let server = Server::start(TINY, &["--sequences", "1", "--queue", "1"]);
    let body = long().to_string();
    let want = server.complete(&long()).text();
    // The first may be done before the third comes, in which case they are asked again.
    let refused = (0..50).find_map(|_| {
        let first = server.send("POST", "/v1/completions", &body);
        let second = server.send("POST", "/v1/completions", &body);
        server.wait_until("answers_open", 2);
        let third = server.complete(&long());
        assert_eq!(
            [first, second].map(|open| open.finish().text()),
            [want.clone(), want.clone()]
        );
        (third.status == 429).then_some(third)
    });
    let refused = refused.unwrap();
    assert!(refused.body.contains("try again later") && refused.head.contains("retry-after: 1"));
}

#[test]
fn a_client_that_goes_frees_its_place() {
    let server = Server::start(TINY, &["--threads", "1", "--sequences", "1"]);
    let stream = with(long(), json!({ "stream": true })).to_string();
    const CLIENTS: u64 = 20;
    for i in 0..CLIENTS {
        let mut running = server.send("POST", "/v1/completions", &stream);
        running.first_event();
        // These go while they wait, with a stream and with an answer that is whole or none.
        drop(server.send("POST", "/v1/completions", &stream));
        drop(server.send(
            "POST",
            "/v1/completions",
            &with(long(), json!({ "seed": i })).to_string(),
        ));
        drop(running);
        server.wait_until_idle();
    }
    assert!(server.metric("cancelled_total") >= CLIENTS / 2);
    // Half of what the first of each asked for.
    let tokens = server.metric("generation_tokens_total");
    assert!(
        (CLIENTS..CLIENTS * 245).contains(&tokens),
        "{tokens} tokens"
    );
    assert_eq!(server.complete(&long()).text(), expected(&long()).0);
}

#[test]
fn clients_that_go_change_nobody_elses_answer() {
    let server = Server::start(TINY, &["--sequences", "4", "--queue", "99"]);
    let want = expected(&long()).0;
    thread::scope(|scope| {
        for client in 0..3 {
            let server = &server;
            scope.spawn(move || {
                for i in 0..12 {
                    let stream = with(long(), json!({ "stream": true, "seed": i, "n": 1 + i % 3 }));
                    let mut open = server.send("POST", "/v1/completions", &stream.to_string());
                    if (client + i) % 2 == 0 {
                        open.first_event();
                    }
                }
            });
        }
        (0..4).for_each(|_| assert_eq!(server.complete(&long()).text(), want));
    });
    server.wait_until_idle();
}

#[test]
fn memory_does_not_grow() {
    let server = Server::start(
        TINY,
        &["--threads", "2", "--sequences", "4", "--prefix-mib", "8"],
    );
    let some = |requests: usize| {
        thread::scope(|scope| {
            for client in 0..4 {
                let server = &server;
                scope.spawn(move || {
                    for i in 0..requests / 4 {
                        let prompt = "Bob likes figs. ".repeat(1 + (i + client) % 20);
                        let body = json!({ "prompt": prompt, "max_tokens": 1 + i % 60, "stream": true, "temperature": 0 });
                        let mut sent = server.send("POST", "/v1/completions", &body.to_string());
                        match i % 5 {
                            0 => drop(sent),
                            1 => sent.first_event(),
                            _ => assert_eq!(sent.finish().status, 200),
                        }
                    }
                });
            }
        });
        server.wait_until_idle();
        server.resident()
    };
    // Every thread's allocator has met the largest request by then, and the prefix cache is full.
    let Some(before) = some(200) else {
        println!("skipped: this system does not say what a process has in use");
        return;
    };
    let after = some(500).unwrap();
    println!("{before} bytes after 200 requests, {after} after 500 more");
    // 8 KiB a request: an eighth of the least that a cache of this model takes.
    assert!(after < before + 500 * 8192, "{before} {after}");
    assert!(server.metric("prefix_cache_bytes") <= 8 << 20);
}

#[test]
fn garbage_leaves_it_running() {
    let server = Server::start(TINY, &["--idle-seconds", "2"]);
    let mut noise = common::numbers(3, 2.0, 3);
    let random: Vec<u8> = (0..1 << 20).map(|_| (noise() * 1e6) as i64 as u8).collect();
    let endless = ["GET /", &"a".repeat(1_000_000), " HTTP/1.1\r\n\r\n"].concat();
    let path = "POST /v1/completions HTTP/1.1\r\nHost: x\r\n";
    let length = |length: &str, body: &[u8]| {
        [
            path.as_bytes(),
            b"Content-Length: ",
            length.as_bytes(),
            b"\r\n\r\n",
            body,
        ]
        .concat()
    };
    for bytes in [
        b"".to_vec(),
        b"\r\n\r\n\r\n".to_vec(),
        length("99999999999999999999", b""),
        length("10", b"{\"pr"),
        length("4", b"\xff\xfe\xfd\xfc"),
        length("1048576", &random),
        [path.as_bytes(), b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"].concat(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        random,
        endless.into_bytes(),
    ] {
        server.raw(&bytes);
    }
    server.wait_until("connections", 1);
    assert_eq!(server.metric("answers_open"), 0);
    assert_eq!(server.complete(&long()).text(), expected(&long()).0);
}

#[test]
fn a_client_that_keeps_still_is_left() {
    let server = Server::start(TINY, &["--idle-seconds", "1"]);
    let mut half = server.connect();
    half.write_all(b"POST /v1/completions HTTP/1.1\r\nHos")
        .unwrap();
    let mut bodyless = server.connect();
    bodyless
        .write_all(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        .unwrap();
    let mut idle = server.connect();
    let mut kept = server.connect();
    kept.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    // Sixteen answers with twenty likely tokens each are more than the system keeps for a client.
    let large = json!({ "n": 16, "logprobs": 20, "stream": true });
    let unread = server.send("POST", "/v1/completions", &with(long(), large).to_string());
    let start = Instant::now();
    let short = with(long(), json!({ "max_tokens": 20 }));
    assert_eq!(server.complete(&short).text(), expected(&short).0);
    server.wait_until("connections", 1);
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "{:?}",
        start.elapsed()
    );
    drop(unread);
    let mut said = String::new();
    bodyless.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    for stream in [&mut half, &mut idle, &mut kept] {
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said);
        assert!(
            !said.contains("200 OK") || said.contains("\"ok\""),
            "{said}"
        );
    }
}

#[test]
fn a_thousand_idle_connections_hold_up_nobody() {
    let server = Server::start(TINY, &["--connections", "1200", "--idle-seconds", "300"]);
    let want = expected(&long()).0;
    let mut running = server.send(
        "POST",
        "/v1/completions",
        &with(long(), json!({ "stream": true })).to_string(),
    );
    running.first_event();
    let idle: Vec<_> = (0..1000).map(|_| server.connect()).collect();
    assert_eq!(server.complete(&long()).text(), want);
    assert!(server.metric("connections") > 1000);
    assert!(running.rest().contains("[DONE]"));
    drop(idle);
    server.wait_until("connections", 1);
}

#[test]
fn one_connection_too_many_is_closed() {
    let server = Server::start(TINY, &["--connections", "3"]);
    let idle: Vec<_> = (0..3).map(|_| server.connect()).collect();
    let mut said = String::new();
    let start = Instant::now();
    let _ = server.connect().read_to_string(&mut said);
    assert!(
        said.starts_with("HTTP/1.1 503") && start.elapsed().as_secs() < 10,
        "{said}"
    );
    drop(idle);
    // They are seen to have gone after a while.
    let done = (0..100).any(|_| {
        thread::sleep(Duration::from_millis(50));
        server
            .raw(b"GET /health HTTP/1.0\r\n\r\n")
            .starts_with(b"HTTP/1.0 200")
    });
    assert!(done);
}

#[test]
#[cfg(unix)]
fn a_signal_lets_it_finish_what_was_begun() {
    for signal in ["INT", "TERM", "HUP"] {
        let mut server = Server::start(TINY, &["--threads", "1", "--drain-seconds", "300"]);
        let idle = server.connect();
        let mut running = server.send(
            "POST",
            "/v1/completions",
            &with(long(), json!({ "stream": true })).to_string(),
        );
        let whole = server.send("POST", "/v1/completions", &long().to_string());
        running.first_event();
        server.wait_until("answers_open", 2);
        server.signal(signal);
        assert_eq!(whole.finish().text(), expected(&long()).0);
        let rest = running.rest();
        assert!(
            rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"),
            "{rest}"
        );
        assert!(server.wait().success(), "{signal}");
        drop(idle);
    }
}

#[test]
#[cfg(unix)]
fn what_takes_too_long_after_a_signal_is_broken_off() {
    let mut server = Server::start(
        TINY,
        &["--threads", "1", "--sequences", "1", "--drain-seconds", "0"],
    );
    let many = with(long(), json!({ "stream": true, "n": 16 })).to_string();
    let mut running = server.send("POST", "/v1/completions", &many);
    let waiting = server.send("POST", "/v1/completions", &long().to_string());
    running.first_event();
    server.wait_until("answers_open", 17);
    server.signal("TERM");
    let rest = running.rest();
    assert!(
        rest.contains("shutting down") && !rest.contains("[DONE]"),
        "{rest}"
    );
    let waiting = waiting.finish();
    assert_eq!(waiting.status, 503, "{waiting:?}");
    assert!(server.wait().success());
}

#[test]
#[cfg(unix)]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::start(TINY, &["--threads", "1"]);
    let many = with(long(), json!({ "stream": true, "n": 128 })).to_string();
    let mut running = server.send("POST", "/v1/completions", &many);
    running.first_event();
    server.signal("TERM");
    thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(143));
    assert!(start.elapsed().as_secs() < 3, "{:?}", start.elapsed());
}

#[test]
#[cfg(unix)]
fn after_kill_9_another_takes_its_place() {
    let mut server = Server::start(TINY, &[]);
    let address = server.address().to_owned();
    let mut running = server.send(
        "POST",
        "/v1/completions",
        &with(long(), json!({ "stream": true, "n": 16 })).to_string(),
    );
    running.first_event();
    server.signal("KILL");
    server.wait();
    let again = Server::start_at(&address, TINY, &[]);
    assert_eq!(again.complete(&long()).text(), expected(&long()).0);
    drop(running);
}

#[test]
fn what_cannot_be_served_is_said_in_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("keys");
    std::fs::write(&empty, "\n").unwrap();
    let empty = empty.to_str().unwrap();
    let taken = Server::start(TINY, &[]);
    for (arguments, why) in [
        (
            &["--listen", taken.address()][..],
            "cannot listen on 127.0.0.1",
        ),
        (
            &["--listen", "nowhere.invalid:1"],
            "cannot listen on nowhere.invalid:1",
        ),
        (&["--listen", "localhost"], "cannot listen on localhost"),
        (
            &["--listen", "127.0.0.1:0", "--patch", "a=none.patch"],
            "cannot read none.patch",
        ),
        (
            &["--listen", "127.0.0.1:0", "--api-key-file", empty],
            "there is no key in it",
        ),
        (
            &["--listen", "127.0.0.1:0", "--api-key-file", "none"],
            "cannot read none",
        ),
    ] {
        let done = common::program(dir.path())
            .args(["serve", "--model", TINY])
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(
            (done.status.code(), said.lines().count()),
            (Some(2), 1),
            "{said}"
        );
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn an_answers_receipt_is_checked_by_whoever_has_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let patch = patch(&dir);
    let server = Server::start(TINY, &["--patch", &format!("figs={patch}")]);
    let receipt = dir.path().join("receipt.json");
    let check = |more: &[&str], receipt_json: &Value| {
        std::fs::write(&receipt, receipt_json.to_string()).unwrap();
        let mut check = common::program(dir.path());
        check.args(["check", receipt.to_str().unwrap()]).args(more);
        check.output().unwrap().status.code()
    };
    let ask = |request: Value| {
        let header = "X-Receipt: 1\r\n";
        let path = "/v1/completions";
        let answer = server
            .send_with("POST", path, header, &request.to_string())
            .finish();
        answer.json()["choices"].as_array().unwrap().clone()
    };
    let draw = json!({ "prompt": "Ann likes", "temperature": 1.5, "seed": 3, "max_tokens": 12 });
    for choice in ask(with(draw.clone(), json!({ "n": 2, "stop": "s" }))) {
        assert_eq!(check(&[], &choice["receipt"]), Some(0), "{choice}");
    }
    let patched = ask(with(draw.clone(), json!({ "model": "tiny+figs" })));
    let patched = &patched[0]["receipt"];
    assert_eq!(check(&["--patch", &patch], patched), Some(0), "{patched}");
    let mut other = patched.clone();
    other["sampling"]["seed"] = json!(4);
    assert_eq!(check(&["--patch", &patch], &other), Some(1));
    // Nobody asked for this one.
    assert!(server.complete(&draw).json()["choices"][0]["receipt"].is_null());
}
