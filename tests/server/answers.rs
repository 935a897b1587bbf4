//! What it says, alone and among others.

use std::thread;

use context_patch::Session;
use context_patch::model::LogProbabilities;
use context_patch::model::generate::{Sampler, Sampling, Stop, generate};
use serde_json::{Value, json};

use super::common::program;
use super::server::{Server, patch};
use super::{MODEL, TINY, long, no_end, with};

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
pub(super) fn expected(request: &Value) -> (String, &'static str) {
    let tokenizer = MODEL.checkpoint().tokenizer().unwrap();
    let prompt = tokenizer
        .encode(request["prompt"].as_str().unwrap())
        .unwrap();
    let bias = request["logit_bias"].as_object().into_iter().flatten();
    let bias = bias.map(|(id, bias)| (id.parse().unwrap(), bias.as_f64().unwrap()));
    let mut sampler = Sampler::new(Sampling {
        temperature: request["temperature"].as_f64().unwrap(),
        seed: request["seed"].as_u64().unwrap(),
        presence_penalty: request["presence_penalty"].as_f64().unwrap_or(0.0),
        logit_bias: bias.collect(),
        ..Sampling::default()
    });
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

#[test]
fn an_answers_receipt_is_checked_by_whoever_has_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let patch = patch(&dir);
    let server = Server::start(TINY, &["--patch", &format!("figs={patch}")]);
    let receipt = dir.path().join("receipt.json");
    let check = |more: &[&str], receipt_json: &Value| {
        std::fs::write(&receipt, receipt_json.to_string()).unwrap();
        let mut check = program(dir.path());
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
