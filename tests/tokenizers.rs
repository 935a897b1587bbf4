//! Tokenizers against transformers, whose results `reference/check_tokenizers.py` wrote.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use context_patch::checkpoint::{Access, Checkpoint, Conversation, Tokenizer};
use serde::Deserialize;
use serde_json::{Map, Value, json};

mod common;

use common::files::{in_memory, real_gguf_files, real_models, with_tiny_weights};
use common::reference;

fn golden<T: for<'de> Deserialize<'de>>(name: &str) -> Vec<T> {
    let path = reference(&format!("tokenizers/{name}.golden.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Files {
    name: String,
    changes: Map<String, Value>,
    ids: Vec<Vec<u32>>,
    written: Vec<Vec<u32>>,
    decoded: Vec<String>,
    special: BTreeMap<String, String>,
}

/// The tokenizer's files in a folder of the reference, with changes, as a checkpoint whose `<bos>` is token `first`; a
/// file that is null is left out.
fn changed(folder: &str, first: u32, changes: &Map<String, Value>) -> Checkpoint {
    let parse = |dir: &str, name: &str| {
        let json = fs::read(reference(dir).join(name)).unwrap();
        serde_json::from_slice::<Value>(&json).unwrap()
    };
    let mut config = parse("tiny", "config.json");
    // Room for tokens that are added.
    config["vocab_size"] = 1024.into();
    config["bos_token_id"] = first.into();
    let mut files = BTreeMap::from([("config.json", config)]);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        files.insert(name, parse(folder, name));
    }
    for (name, change) in changes {
        merge(
            files
                .entry(name)
                .or_insert_with(|| Value::Object(Map::new())),
            change,
        );
    }
    let files = files.into_iter().filter(|(_, content)| !content.is_null());
    in_memory(files.map(|(name, content)| (name, content.to_string().into_bytes())))
}

fn merge(base: &mut Value, change: &Value) {
    match (base, change) {
        (Value::Object(base), Value::Object(change)) => {
            for (name, change) in change {
                merge(base.entry(name.clone()).or_insert(Value::Null), change);
            }
        }
        (base, change) => *base = change.clone(),
    }
}

/// What differs between a tokenizer and what transformers makes of a text.
fn differences(tokenizer: &Tokenizer, text: &str, ids: &[u32], decoded: &str) -> Vec<String> {
    let mut stream = tokenizer.stream();
    let mut streamed: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    streamed += &stream.finish().unwrap();
    // A second <bos>, where the text begins with one.
    let repeated =
        ids.len() > 1 && ids[0] == ids[1] && tokenizer.encode("").unwrap().first() == ids.first();
    let ids_once = &ids[usize::from(repeated)..];
    let pairs = [
        (
            "ids",
            format!("{:?}", tokenizer.encode(text).unwrap()),
            format!("{ids_once:?}"),
        ),
        ("decoded", tokenizer.decode(ids).unwrap(), decoded.into()),
        ("streamed", streamed, decoded.into()),
    ];
    let pairs = pairs.into_iter().filter(|(_, ours, theirs)| ours != theirs);
    let line = |(what, ours, theirs)| {
        format!("{what} of {text:?}\n    theirs {theirs}\n    ours   {ours}")
    };
    pairs.map(line).collect()
}

/// A template that writes all special tokens that have a name.
fn template_of_names<'a>(names: impl Iterator<Item = &'a String>) -> Value {
    let source: String = names.map(|name| format!("{{{{ {name} }}}};")).collect();
    serde_json::json!({ "chat_template": source })
}

/// Compares the tokenizers of `golden` with ours; returns how many of them are not what tokenizer.json alone gives.
fn compare_tokenizers(name: &str, folder: &str, first: u32) -> usize {
    let mut cases = golden::<Value>(name).into_iter();
    let texts: Vec<String> =
        serde_json::from_value(cases.next().unwrap()["texts"].clone()).unwrap();
    let (mut wrong, mut noticed) = (Vec::new(), 0);
    for case in cases {
        let case: Files = serde_json::from_value(case).unwrap();
        let named = |line: String| format!("{}, {line}", case.name);
        let checkpoint = changed(folder, first, &case.changes);
        let tokenizer = checkpoint.tokenizer().unwrap();
        let json = checkpoint.file("tokenizer.json").unwrap().unwrap();
        let alone =
            Tokenizer::from_bytes(Path::new("t"), &json, checkpoint.config(), None).unwrap();
        let same = |(text, ids): (&String, &Vec<u32>)| {
            alone.encode_as_written(text).is_ok_and(|own| own == *ids)
        };
        noticed += usize::from(!texts.iter().zip(&case.written).all(same));
        for (i, text) in texts.iter().enumerate() {
            let written = tokenizer.encode_as_written(text).unwrap();
            if written != case.written[i] {
                wrong.push(named(format!(
                    "{text:?}\n    theirs {:?}\n    ours   {written:?}",
                    case.written[i]
                )));
            }
            let lines = differences(&tokenizer, text, &case.ids[i], &case.decoded[i]);
            wrong.extend(lines.into_iter().map(named));
        }
        let mut changes = case.changes.clone();
        let settings = changes
            .entry("tokenizer_config.json")
            .or_insert_with(|| Value::Object(Map::new()));
        if settings.is_null() {
            continue;
        }
        merge(settings, &template_of_names(case.special.keys()));
        let template = changed(folder, first, &changes).chat_template().unwrap();
        let messages = Conversation::parse(Path::new("m"), br#"[{"role": "user"}]"#).unwrap();
        let ours = template.render(&messages).unwrap();
        let texts = case.special.values().map(|text| format!("{text};"));
        let theirs: String = texts.collect();
        if ours != theirs {
            wrong.push(named(format!(
                "special tokens\n    theirs {theirs}\n    ours   {ours}"
            )));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    noticed
}

#[test]
fn tiny_models_tokenizers_are_those_that_auto_tokenizer_makes() {
    let noticed = compare_tokenizers("tiny", "tiny", 2);
    assert!(
        noticed >= 40,
        "only {noticed} tokenizers differ from their files taken as they are"
    );
}

#[test]
fn byte_level_tokenizers_are_those_that_auto_tokenizer_makes() {
    let noticed = compare_tokenizers("byte-level", "tokenizers/byte-level", 0);
    assert!(
        noticed >= 20,
        "only {noticed} tokenizers differ from their files taken as they are"
    );
}

/// A text in a real model's tokenizer: the model, the text, its ids and their text.
type Encoded = (String, String, Vec<u32>, String);

/// Compares a tokenizer with that of the real model `name`; `as_decoded` gives what this one makes of
/// the ids of a text that the other one decodes.
fn compare_with_golden(name: &str, tokenizer: &Tokenizer, as_decoded: impl Fn(&str) -> String) {
    let texts: Vec<Encoded> = golden("models");
    for (_, text, ids, decoded) in texts.iter().filter(|(of, ..)| of == name) {
        let wrong = differences(tokenizer, text, ids, &as_decoded(decoded));
        assert!(wrong.is_empty(), "{name}: {}", wrong.join("\n"));
    }
}

#[test]
fn real_models_tokenizers_are_those_that_auto_tokenizer_makes() {
    for (name, dir) in real_models() {
        let tokenizer = with_tiny_weights(&dir).tokenizer().unwrap();
        compare_with_golden(name, &tokenizer, str::to_owned);
    }
}

#[test]
fn real_gguf_files_have_the_tokenizers_of_their_models() {
    for (name, file) in real_gguf_files() {
        // Control tokens in Qwen2's file, and so special; in its tokenizer.json they are not.
        let special: &[&str] = match name {
            "qwen2.5-coder-0.5b-instruct" => &["<|fim_prefix|>", "<|fim_suffix|>"],
            _ => &[],
        };
        let without_special = |text: &str| {
            let text = text.to_owned();
            special
                .iter()
                .fold(text, |text, token| text.replace(token, ""))
        };
        let checkpoint = Checkpoint::open(file.to_str().unwrap(), Access::Mapped).unwrap();
        compare_with_golden(name, &checkpoint.tokenizer().unwrap(), without_special);
    }
}

/// The checkpoint as a GGUF file and read again, or why there is no tokenizer in that.
fn through_gguf(checkpoint: &Checkpoint) -> Result<Checkpoint, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    let reason = checkpoint.write_gguf(&file, None).unwrap();
    let back = Checkpoint::open(file.to_str().unwrap(), Access::Read).unwrap();
    assert_eq!(back.tokenizer().is_err(), reason.is_some());
    reason.map_or(Ok(back), Err)
}

/// Which of the tokenizers of `golden`, with `more` changes, can be written as GGUF; those have the same ids there.
fn written_as_gguf(name: &str, folder: &str, first: u32, more: &Value) -> String {
    let mut cases = golden::<Value>(name).into_iter();
    let texts: Vec<String> =
        serde_json::from_value(cases.next().unwrap()["texts"].clone()).unwrap();
    let mut said = String::new();
    for case in cases {
        let mut case: Files = serde_json::from_value(case).unwrap();
        merge(
            case.changes.entry("tokenizer.json").or_insert(json!({})),
            more,
        );
        let original = changed(folder, first, &case.changes);
        let outcome = match through_gguf(&original) {
            Err(reason) => reason,
            Ok(back) => {
                let [original, tokenizer] = [original, back].map(|of| of.tokenizer().unwrap());
                for text in &texts {
                    let ids = original.encode(text).unwrap();
                    let decoded = original.decode(&ids).unwrap();
                    let wrong = differences(&tokenizer, text, &ids, &decoded);
                    assert!(wrong.is_empty(), "{}, {}", case.name, wrong.join("\n"));
                }
                "written".into()
            }
        };
        said += &format!("{}: {outcome}\n", case.name);
    }
    said
}

/// All pairs of the tiny model's tokens that are a token together, as SentencePiece merges them.
fn all_merges() -> Value {
    let json = fs::read(reference("tiny/tokenizer.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let vocabulary = json["model"]["vocab"].as_object().unwrap();
    let mut all: Vec<[&str; 2]> = Vec::new();
    for merge in json["model"]["merges"].as_array().unwrap() {
        let token = [0, 1].map(|side| merge[side].as_str().unwrap()).concat();
        let (token, _) = vocabulary.get_key_value(&token).unwrap();
        let pairs = token.char_indices().map(|(end, _)| token.split_at(end));
        let both = |(left, right): &(&str, &str)| {
            vocabulary.contains_key(*left) && vocabulary.contains_key(*right)
        };
        all.extend(pairs.rev().filter(both).map(|(left, right)| [left, right]));
    }
    json!({"model": {"merges": all}})
}

#[test]
fn tokenizers_go_into_gguf_where_it_can_say_them() {
    let tiny = changed("tiny", 2, &Map::new());
    let mut said = format!("tiny: {}\n\n", through_gguf(&tiny).unwrap_err());
    said += &written_as_gguf("tiny", "tiny", 2, &all_merges());
    said += "\n";
    said += &written_as_gguf("byte-level", "tokenizers/byte-level", 0, &json!({}));
    insta::assert_snapshot!(said);
}

#[test]
fn why_a_tokenizer_is_left_out_of_gguf() {
    let says_bos = json!({"bos_token": null, "chat_template": "{{ bos_token }}"});
    let mut said = String::new();
    for changes in [
        json!({"tokenizer.json": null}),
        json!({"tokenizer.json": {"model": {"type": "Unigram"}}}),
        json!({"tokenizer_config.json": {"tokenizer_class": "T5Tokenizer"}}),
        json!({"tokenizer_config.json": {"chat_template": 3}}),
        json!({"tokenizer_config.json": says_bos}),
        json!({"tokenizer.json": {"pre_tokenizer": {"use_regex": false}}}),
        json!({"tokenizer.json": {"decoder": {"type": "Fuse"}}}),
    ] {
        let checkpoint = changed("tokenizers/byte-level", 0, changes.as_object().unwrap());
        let reason = through_gguf(&checkpoint).map(drop).unwrap_err();
        said += &format!("{changes}: {reason}\n");
    }
    insta::assert_snapshot!(said);
}

#[test]
fn all_chat_templates_go_into_gguf() {
    let templates = json!([{"name": "default", "template": "D"}, {"name": "rag", "template": "{{ bos_token }}"}]);
    for templates in [templates, json!("D{{ bos_token }}")] {
        let changes = json!({"tokenizer_config.json": {"chat_template": templates}});
        let original = changed("tokenizers/byte-level", 0, changes.as_object().unwrap());
        let back = through_gguf(&original).map_err(|reason| panic!("{reason}"));
        let json = back
            .unwrap()
            .file("tokenizer_config.json")
            .unwrap()
            .unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["chat_template"], templates);
    }
}

#[test]
fn real_models_tokenizers_go_into_gguf() {
    let messages = br#"[{"role": "user", "content": "Hello!"}]"#;
    let messages = Conversation::parse(Path::new("m"), messages).unwrap();
    let chat = |checkpoint: &Checkpoint| {
        let template = checkpoint.chat_template().ok()?;
        Some(template.render(&messages).unwrap())
    };
    for (name, dir) in real_models() {
        let original = with_tiny_weights(&dir);
        let back = through_gguf(&original).unwrap();
        compare_with_golden(name, &back.tokenizer().unwrap(), str::to_owned);
        assert_eq!(chat(&back), chat(&original), "{name}");
        assert_eq!(chat(&back).is_some(), name.ends_with("instruct"), "{name}");
    }
}
