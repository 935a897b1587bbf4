//! Chat templates against transformers, whose results `reference/check_templates.py` wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use context_patch::checkpoint::{
    Access, ChatTemplate, Checkpoint, Conversation, Message, Tokenizer,
};
use minijinja::Environment;
use minijinja::syntax::SyntaxConfig;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

mod common;
#[path = "chat_templates/different.rs"]
mod different;

use common::files::{real_models, with_tiny_weights};
use common::reference;
use different::{ACCEPTED, DIFFERENT, REFUSED};

/// The time of the reference's clock.
const TIME: &str = "2026-11-07T09:05:03.000042";

fn golden<T: for<'de> Deserialize<'de>>(name: &str) -> Vec<T> {
    let path = reference(&format!("templates/{name}.golden.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn open(dir: &Path) -> Checkpoint {
    Checkpoint::open(dir.to_str().unwrap(), Access::Mapped).unwrap()
}

/// How many ids, and a hash of them, as the reference writes them.
fn digest(tokenizer: &Tokenizer, text: &str) -> String {
    let ids = tokenizer.encode_as_written(text).unwrap();
    let words: Vec<String> = ids.iter().map(u32::to_string).collect();
    format!("{} {}", ids.len(), short_hash(&words.join(" ")))
}

/// The first 16 digits of a text's SHA-256.
fn short_hash(text: &str) -> String {
    let hash = Sha256::digest(text);
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    text: Option<String>,
    tiny: Option<String>,
    gemma: Option<String>,
}

#[test]
fn templates_of_all_families_give_transformers_text_and_ids() {
    let checkpoint = open(&reference("tiny"));
    let tiny = checkpoint.tokenizer().unwrap();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/gemma-3-270m");
    let gemma = dir.exists().then(|| open(&dir).tokenizer().unwrap());
    let tokens = [
        ("bos_token", "<bos>"),
        ("eos_token", "<eos>"),
        ("unk_token", "<unk>"),
        ("pad_token", "<pad>"),
    ];
    let cases: Vec<Case> = golden("cases");
    assert!(cases.len() >= 20 * 6);
    for case in cases {
        let path = reference(&format!("templates/{}.jinja", case.template));
        let source = fs::read_to_string(&path).unwrap();
        let messages = reference(&format!(
            "templates/conversations/{}.json",
            case.conversation
        ));
        let conversation = Conversation::read(&messages).unwrap().at(TIME).unwrap();
        for source in [source.replace('\n', "\r\n"), source] {
            let template = ChatTemplate::parse(&path, source, tokens).unwrap();
            let text = template.render(&conversation);
            let name = format!("{} of {}", case.template, case.conversation);
            assert_eq!(text.as_ref().ok(), case.text.as_ref(), "{name}: {text:?}");
            let Ok(text) = text else { continue };
            assert_eq!(Some(digest(&tiny, &text)), case.tiny, "{name}");
            if let Some(gemma) = &gemma {
                assert_eq!(Some(digest(gemma, &text)), case.gemma, "{name}");
            }
        }
    }
}

fn features() -> Conversation {
    Conversation::read(&reference("templates/features.json"))
        .unwrap()
        .at(TIME)
        .unwrap()
}

fn render(source: &str) -> Option<String> {
    let tokens: [(&str, &str); 0] = [];
    let template = ChatTemplate::parse(Path::new("features"), source.into(), tokens);
    template
        .and_then(|template| template.render(&features()))
        .ok()
}

#[test]
fn jinjas_expressions_and_statements_mean_the_same() {
    let mut wrong = Vec::new();
    let mut known = BTreeSet::new();
    for (source, theirs) in golden::<(String, Option<String>)>("features") {
        let ours = render(&source);
        let list = match (&ours, &theirs) {
            (ours, theirs) if ours == theirs => continue,
            (None, _) => REFUSED,
            (_, None) => ACCEPTED,
            _ => DIFFERENT,
        };
        if list.contains(&&*source) {
            known.insert(source);
        } else {
            wrong.push(format!(
                "{source:?}\n    theirs {theirs:?}\n    ours   {ours:?}"
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    let listed = [REFUSED, ACCEPTED, DIFFERENT].concat();
    let same: Vec<_> = listed
        .iter()
        .filter(|source| !known.contains(**source))
        .collect();
    assert!(same.is_empty(), "listed, but not different: {same:?}");
}

#[test]
fn minijinja_alone_would_be_noticed() {
    let alone = |source: &str| {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        env.set_syntax(syntax.unwrap());
        env.render_str(source, ()).ok()
    };
    let theirs: BTreeMap<String, Option<String>> = golden("features").into_iter().collect();
    for source in [
        "{% if t %}\r\nx\r\n{% endif %}\r\n",
        "{% raw %}\n{{ x }}\n{% endraw %}\ny",
        "{{ '\\a\\b\\f\\v\\0' }}",
        "{{ 1e16 }}",
        "{{ 'x'|int }}",
        "{{ {'é':'é'}|tojson(ensure_ascii=true) }}",
        "{% generation %}a{% endgeneration %}",
        "{{ strftime_now('%d %b %Y') }}",
    ] {
        assert_eq!(render(source), theirs[source], "{source:?}");
        assert_ne!(alone(source), theirs[source], "{source:?}");
    }
}

/// A conversation in a real model's own template: the model, the conversation, hashes of the text and of its ids, none
/// where the template refuses.
type Talk = (String, String, Option<String>, Option<String>);

#[test]
fn real_models_templates_give_transformers_text_and_ids() {
    let talks: Vec<Talk> = golden("models");
    for (name, dir) in real_models() {
        let checkpoint = with_tiny_weights(&dir);
        let tokenizer = checkpoint.tokenizer().unwrap();
        for (_, talk, hash, ids) in talks.iter().filter(|(of, ..)| of == name) {
            let path = reference(&format!("templates/conversations/{talk}.json"));
            let conversation = Conversation::read(&path).unwrap().at(TIME).unwrap();
            let text = checkpoint.chat_template().unwrap().render(&conversation);
            let ours = text.as_ref().ok();
            assert_eq!(
                ours.map(|text| short_hash(text)).as_ref(),
                hash.as_ref(),
                "{name}, {talk}: {text:?}"
            );
            assert_eq!(
                ours.map(|text| digest(&tokenizer, text)).as_ref(),
                ids.as_ref(),
                "{name}, {talk}"
            );
        }
    }
}

/// The ids of a prompt that the program makes.
fn prompt_ids(args: &[&str]) -> Vec<u32> {
    let tiny = reference("tiny");
    let output = Command::new(env!("CARGO_BIN_EXE_context-patch"))
        .args([
            "generate",
            "--json",
            "--max-tokens",
            "1",
            "--model",
            tiny.to_str().unwrap(),
        ])
        .args(args)
        .output()
        .unwrap();
    let said: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    serde_json::from_value(said["prompt_ids"].clone()).unwrap()
}

#[test]
fn the_program_takes_a_system_message_and_a_file_of_messages() {
    let checkpoint = open(&reference("tiny"));
    let (tokenizer, template) = (
        checkpoint.tokenizer().unwrap(),
        checkpoint.chat_template().unwrap(),
    );
    let ids = |conversation: &Conversation| {
        let text = template.render(conversation).unwrap();
        tokenizer.encode_as_written(&text).unwrap()
    };
    let told = Conversation::new([Message::system("Be brief."), Message::user("Hi <eos>")]);
    let args = ["--chat", "--system", "Be brief.", "--prompt", "Hi <eos>"];
    assert_eq!(prompt_ids(&args), ids(&told));

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("talk.json");
    let json = r#"{"messages": [{"role": "user", "content": "Hi"}], "bos_token": "<pad>"}"#;
    fs::write(&file, json).unwrap();
    let from_file = prompt_ids(&["--messages", file.to_str().unwrap()]);
    assert_eq!(from_file, ids(&Conversation::read(&file).unwrap()));
    // What the template writes decides, not the model's first token.
    assert_eq!(from_file[0], 0);

    fs::write(&file, "[3]").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_context-patch"))
        .args(["generate", "--model", reference("tiny").to_str().unwrap()])
        .args(["--messages", file.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("messages must be a list of objects"));
}
