use serde_json::json;

use super::*;

const VOCABULARY: usize = 1000;

fn completion(body: &Value) -> Result<CompletionRequest, Refusal> {
    CompletionRequest::parse(body.to_string().as_bytes(), VOCABULARY)
}

fn chat(mut body: Value) -> Result<ChatRequest, Refusal> {
    let messages = json!([{ "role": "user", "content": "Hi" }]);
    body.as_object_mut()
        .unwrap()
        .entry("messages")
        .or_insert(messages);
    ChatRequest::parse(body.to_string().as_bytes(), VOCABULARY)
}

/// The parameter that is refused, and why.
fn refused<T: std::fmt::Debug>(request: Result<T, Refusal>) -> (String, String) {
    let refusal = request.unwrap_err();
    assert_eq!(refusal.status(), 400);
    let error = &refusal.body()["error"];
    assert_eq!(error["type"], "invalid_request_error");
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    (text("param"), text("message"))
}

#[test]
fn what_is_not_said_is_openais_default() {
    let request = completion(&json!({ "prompt": "Bob", "stop": null, "user": "me" })).unwrap();
    assert_eq!(request.prompts, [Prompt::Text("Bob".into())]);
    let settings = request.settings;
    assert_eq!(settings.max_tokens, Some(16));
    assert_eq!(
        (
            settings.n,
            settings.sampling.temperature,
            settings.sampling.top_p
        ),
        (1, 1.0, 1.0)
    );
    assert_eq!((settings.seed, settings.logprobs), (None, None));
    assert!(!settings.stream && !request.echo && settings.stop.is_empty());
    assert_eq!(chat(json!({})).unwrap().settings.max_tokens, None);
}

#[test]
fn prompts_come_in_four_forms() {
    let prompts = |prompt: Value| completion(&json!({ "prompt": prompt })).unwrap().prompts;
    let text = |text: &str| Prompt::Text(text.into());
    assert_eq!(prompts(json!("a")), [text("a")]);
    assert_eq!(prompts(json!(["a", "b"])), [text("a"), text("b")]);
    assert_eq!(prompts(json!([1, 2])), [Prompt::Ids(vec![1, 2])]);
    let lists = [Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])];
    assert_eq!(prompts(json!([[1], [2, 3]])), lists);
    for (prompt, param) in [
        (json!(""), "prompt"),
        (json!([]), "prompt"),
        (json!(["a", ""]), "prompt[1]"),
        (json!([[]]), "prompt[0]"),
        (json!([1, 1000]), "prompt"),
        (json!([1, -1]), "prompt"),
        (json!([1, 1.5]), "prompt"),
        (json!([1, "a"]), "prompt"),
        (json!(["a", 1]), "prompt"),
        (json!({}), "prompt"),
        (json!(null), "prompt"),
    ] {
        let (named, why) = refused(completion(&json!({ "prompt": prompt })));
        assert_eq!(named, param, "{prompt}: {why}");
    }
}

#[test]
fn every_parameter_is_read() {
    let request = completion(&json!({
        "model": "m", "prompt": "x", "max_tokens": 7, "n": 3, "best_of": 3, "temperature": 0, "top_k": 5, "top_p": 0.5,
        "min_p": 0.1, "presence_penalty": -2, "frequency_penalty": 2, "logit_bias": { "7": -100, "12": 1.5 }, "seed": -1,
        "stop": ["a", "b"], "stream": true, "stream_options": { "include_usage": true }, "logprobs": 0, "echo": true,
    }));
    let want = Settings {
        max_tokens: Some(7),
        n: 3,
        sampling: Sampling {
            temperature: 0.0,
            top_k: 5,
            top_p: 0.5,
            min_p: 0.1,
            presence_penalty: -2.0,
            frequency_penalty: 2.0,
            logit_bias: vec![(7, -100.0), (12, 1.5)],
            ..Sampling::default()
        },
        seed: Some(u64::MAX),
        stop: vec!["a".into(), "b".into()],
        stream: true,
        include_usage: true,
        logprobs: Some(0),
    };
    let request = request.unwrap();
    assert_eq!(request.settings, want);
    assert!(request.echo && request.model.as_deref() == Some("m"));
    let both = json!({ "max_tokens": 3, "max_completion_tokens": 4, "top_k": -1, "logprobs": true, "top_logprobs": 20 });
    let settings = chat(both).unwrap().settings;
    assert_eq!(
        (
            settings.max_tokens,
            settings.sampling.top_k,
            settings.logprobs
        ),
        (Some(4), 0, Some(20))
    );
}

#[test]
fn a_wrong_value_is_named() {
    for (name, value, why) in [
        (
            "temperature",
            json!(2.1),
            "'temperature' must be from 0 to 2, and is 2.1",
        ),
        (
            "temperature",
            json!("0"),
            "'temperature' must be a number, and is a string",
        ),
        ("top_p", json!(-0.1), "from 0 to 1"),
        ("min_p", json!(1.1), "from 0 to 1"),
        ("top_k", json!(-2), "must be from -1"),
        ("n", json!(0), "from 1 to 128"),
        (
            "n",
            json!(1.5),
            "must be an integer, and is a number that is no integer",
        ),
        ("seed", json!(u64::MAX), "an integer that is too large"),
        ("presence_penalty", json!(3), "from -2 to 2"),
        (
            "frequency_penalty",
            json!([]),
            "must be a number, and is a list",
        ),
        ("stream", json!(1), "must be a boolean, and is an integer"),
        ("stream_options", json!({}), "needs 'stream'"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "at most 4"),
        ("stop", json!(["a", ""]), "no empty string"),
        ("stop", json!(1), "a string or a list of strings"),
        (
            "logit_bias",
            json!({ "1000": 1 }),
            "'1000' is not a token id below 1000",
        ),
        ("logit_bias", json!({ "x": 1 }), "'x' is not a token id"),
        ("logit_bias", json!([]), "an object"),
        ("max_tokens", json!(-1), "must be from 0"),
        ("logprobs", json!(21), "from 0 to 20"),
        ("echo", json!("yes"), "a boolean"),
        ("model", json!(1), "a string"),
        ("best_of", json!(2), "leave it out"),
    ] {
        let (named, message) = refused(completion(&json!({ "prompt": "x", name: value })));
        assert_eq!(named, name, "{message}");
        assert!(message.contains(why), "{message}");
    }
    let (named, _) = refused(completion(
        &json!({ "prompt": "x", "logit_bias": { "1": 101 } }),
    ));
    assert_eq!(named, "logit_bias.1");
    assert_eq!(
        refused(chat(json!({ "top_logprobs": 2 }))).0,
        "top_logprobs"
    );
    assert_eq!(refused(chat(json!({ "max_tokens": 0 }))).0, "max_tokens");
    let usage = json!({ "stream": true, "stream_options": { "include_usage": 1 } });
    assert_eq!(refused(chat(usage)).0, "stream_options.include_usage");
}

#[test]
fn messages_are_text() {
    let messages = |messages: Value| chat(json!({ "messages": messages }));
    let request = messages(json!([
        { "role": "developer", "content": "Be brief." },
        { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }], "name": "Ann" },
        { "role": "assistant", "content": "c", "tool_calls": [] },
    ]));
    let said = |role: &str, content: &str, name: Option<&str>| ChatMessage {
        role: role.into(),
        content: content.into(),
        name: name.map(str::to_owned),
    };
    let want = [
        said("system", "Be brief.", None),
        said("user", "a\nb", Some("Ann")),
        said("assistant", "c", None),
    ];
    assert_eq!(request.unwrap().messages, want);
    for (wrong, param) in [
        (json!([]), "messages"),
        (json!("Hi"), "messages"),
        (json!([1]), "messages[0]"),
        (json!([{ "content": "x" }]), "messages[0].role"),
        (
            json!([{ "role": "tool", "content": "x" }]),
            "messages[0].role",
        ),
        (json!([{ "role": "user" }]), "messages[0].content"),
        (
            json!([{ "role": "user", "content": 1 }]),
            "messages[0].content",
        ),
        (
            json!([{ "role": "user", "content": [{ "type": "image_url" }] }]),
            "messages[0].content[0].type",
        ),
        (
            json!([{ "role": "user", "content": [{ "type": "text" }] }]),
            "messages[0].content[0].text",
        ),
        (
            json!([{ "role": "assistant", "tool_calls": [1] }]),
            "messages[0].tool_calls",
        ),
    ] {
        let (named, message) = refused(messages(wrong));
        assert_eq!(named, param, "{message}");
    }
    let nothing = ChatRequest::parse(b"{}", VOCABULARY);
    assert_eq!(refused(nothing).0, "messages");
}

#[test]
fn what_is_not_supported_is_refused_by_name_and_what_is_unknown_is_not() {
    for (name, harmless, _) in UNSUPPORTED {
        let value = json!({ "type": "json_object" });
        let refusal = chat(json!({ name: value })).unwrap_err().body();
        assert_eq!(refusal["error"]["param"], name);
        assert_eq!(refusal["error"]["code"], "unsupported_parameter");
        for value in harmless {
            let value: Value = serde_json::from_str(value).unwrap();
            chat(json!({ name: value })).unwrap();
        }
        chat(json!({ name: null })).unwrap();
    }
    chat(json!({ "colour": { "a": 1 }, "metadata": {}, "user": "x" })).unwrap();
    let own = json!({ "chat_template_kwargs": { "messages": [] } });
    assert_eq!(refused(chat(own)).0, "chat_template_kwargs");
    let own = json!({ "chat_template_kwargs": { "enable_thinking": false } });
    assert_eq!(
        chat(own).unwrap().template_arguments["enable_thinking"],
        false
    );
}

#[test]
fn a_body_that_is_no_object_is_refused() {
    for (body, why) in [
        (&b""[..], "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "must be a JSON object, and is a list"),
        (b"{\"temperature\": 1e999}", "not JSON"),
        (&[b'['; 4000], "not JSON"),
    ] {
        let (_, message) = refused(CompletionRequest::parse(body, VOCABULARY));
        assert!(message.contains(why), "{message}");
        refused(ChatRequest::parse(body, VOCABULARY));
    }
}
