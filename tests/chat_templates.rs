//! Chat templates and tokenizers against transformers, whose results `reference/check_templates.py` wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use context_patch::checkpoint::{
    Access, ChatTemplate, Checkpoint, Conversation, Message, Tokenizer,
};
use minijinja::Environment;
use minijinja::syntax::SyntaxConfig;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

#[path = "chat_templates/different.rs"]
mod different;

use different::{ACCEPTED, DIFFERENT, REFUSED};

/// The time of the reference's clock.
const TIME: &str = "2026-11-07T09:05:03.000042";

fn reference(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("reference")
        .join(path)
}

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

/// A checkpoint of these files and the tiny model's weights.
fn in_memory<'a>(files: impl Iterator<Item = (&'a str, Vec<u8>)>) -> Checkpoint {
    let weights = fs::read(reference("tiny/model.safetensors")).unwrap();
    let weights = ("model.safetensors", weights);
    let files = files
        .chain([weights])
        .map(|(name, bytes)| (name, bytes.into()));
    Checkpoint::from_files("tiny", files).unwrap()
}

/// A model's tokenizer and template with the tiny model's config and weights, which are read faster.
fn with_tiny_weights(dir: &Path) -> Checkpoint {
    let parse = |path: PathBuf| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let (mut config, real) = (
        parse(reference("tiny/config.json")),
        parse(dir.join("config.json")),
    );
    for name in ["vocab_size", "bos_token_id"] {
        config[name] = real[name].clone();
    }
    let config = ("config.json", config.to_string().into_bytes());
    let names = [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ];
    let files = names
        .into_iter()
        .filter_map(|name| Some((name, fs::read(dir.join(name)).ok()?)));
    in_memory(files.chain([config]))
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
fn tokenizers_are_those_that_auto_tokenizer_makes() {
    let noticed = compare_tokenizers("tokenizers", "tiny", 2);
    assert!(
        noticed >= 40,
        "only {noticed} tokenizers differ from their files taken as they are"
    );
}

#[test]
fn byte_level_tokenizers_are_those_that_auto_tokenizer_makes() {
    let noticed = compare_tokenizers("byte-level", "templates/byte-level", 0);
    assert!(
        noticed >= 20,
        "only {noticed} tokenizers differ from their files taken as they are"
    );
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

/// A conversation in a model's own template: its name, the text's hash and the ids', none where the template refuses.
type Talk = (String, Option<String>, Option<String>);

#[test]
fn real_models_write_and_read_as_in_transformers() {
    for name in [
        "gemma-3-270m",
        "smollm2-135m-instruct",
        "qwen2.5-coder-0.5b-instruct",
    ] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("models")
            .join(name);
        if !dir.exists() {
            println!("skipped: no models/{name} (python3 reference/fetch_models.py brings it)");
            continue;
        }
        let checkpoint = with_tiny_weights(&dir);
        let tokenizer = checkpoint.tokenizer().unwrap();
        let mut golden = golden::<Value>(name).into_iter();
        let talks: Vec<Talk> = serde_json::from_value(golden.next().unwrap()).unwrap();
        for encoded in golden {
            let Encoded { text, ids, decoded } = serde_json::from_value(encoded).unwrap();
            let wrong = differences(&tokenizer, &text, &ids, &decoded);
            assert!(wrong.is_empty(), "{name}: {}", wrong.join("\n"));
        }
        for (talk, hash, ids) in talks {
            let path = reference(&format!("templates/conversations/{talk}.json"));
            let conversation = Conversation::read(&path).unwrap().at(TIME).unwrap();
            let text = checkpoint.chat_template().unwrap().render(&conversation);
            let ours = text.as_ref().ok();
            assert_eq!(
                ours.map(|text| short_hash(text)),
                hash,
                "{name}, {talk}: {text:?}"
            );
            assert_eq!(
                ours.map(|text| digest(&tokenizer, text)),
                ids,
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
