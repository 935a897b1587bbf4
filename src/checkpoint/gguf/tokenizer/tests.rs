use std::path::Path;

use bytes::Bytes;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::super::cursor::Cursor;
use super::super::writer::Values;
use super::*;

/// A value of the metadata.
#[derive(Clone)]
enum Written {
    Text(&'static str),
    Count(u32),
    Flag(bool),
    Texts(Vec<String>),
    Counts(Vec<i32>),
    Numbers(Vec<f32>),
}
use Written::{Count, Counts, Flag, Numbers, Text, Texts};

/// Keys and values.
type Entries = Vec<(&'static str, Written)>;

fn texts(texts: &[&str]) -> Written {
    Texts(texts.iter().map(|text| (*text).into()).collect())
}

/// The entries, with others in place of those of the same key.
fn with(base: &Entries, others: &[(&'static str, Written)]) -> Entries {
    let mut entries = base.clone();
    entries.retain(|(key, _)| others.iter().all(|other| other.0 != *key));
    entries.extend(others.iter().cloned());
    entries
}

fn without(base: &Entries, key: &str) -> Entries {
    let mut entries = base.clone();
    entries.retain(|entry| entry.0 != key);
    entries
}

fn metadata(entries: &Entries) -> Metadata {
    let mut values = Values::default();
    for (key, value) in entries {
        match value {
            Text(text) => values.text(key, text),
            Count(count) => values.count(key, *count),
            Flag(flag) => values.copied(&entry(key, 7, [u8::from(*flag)])),
            Texts(texts) => {
                let bytes =
                    |text: &String| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
                values.copied(&array(key, 8, texts.iter().map(bytes)));
            }
            Counts(counts) => {
                let bytes = counts.iter().map(|count| count.to_le_bytes().to_vec());
                values.copied(&array(key, 5, bytes));
            }
            Numbers(numbers) => {
                let bytes = numbers.iter().map(|number| number.to_le_bytes().to_vec());
                values.copied(&array(key, 6, bytes));
            }
        }
    }
    let (path, bytes) = (
        Path::new("m.gguf"),
        Bytes::copy_from_slice(values.written()),
    );
    Metadata::read(path, &mut Cursor::new(path, &bytes), values.len()).unwrap()
}

/// A key, a type and the bytes of a value.
fn entry(key: &str, kind: u32, value: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let length = (key.len() as u64).to_le_bytes();
    let mut bytes = [&length, key.as_bytes(), &kind.to_le_bytes()].concat();
    bytes.extend(value);
    bytes
}

/// A key and an array of elements of a type.
fn array(key: &str, kind: u32, elements: impl ExactSizeIterator<Item = Vec<u8>>) -> Vec<u8> {
    let head = [
        &kind.to_le_bytes()[..],
        &(elements.len() as u64).to_le_bytes(),
    ]
    .concat();
    entry(key, 9, head.into_iter().chain(elements.flatten()))
}

const KINDS: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const TOKENS: &str = vocabulary::TOKENS;
const MERGES: &str = "tokenizer.ggml.merges";
const PRE: &str = "tokenizer.ggml.pre";
const SPACE: &str = "tokenizer.ggml.add_space_prefix";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";

/// Where the words of [`sentence_piece_of`] begin: behind `<unk>`, `<s>`, `</s>` and the bytes.
const WORDS: u32 = 259;

/// A SentencePiece vocabulary that ends with `words`: text, score and kind.
fn sentence_piece_of(words: &[(&str, f32, i32)]) -> Entries {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let mut kinds = vec![2, 3, 3];
    kinds.extend([6; 256]);
    let mut scores = vec![0.0; tokens.len()];
    for (text, score, kind) in words {
        tokens.push((*text).into());
        scores.push(*score);
        kinds.push(*kind);
    }
    vec![
        (MODEL, Text("llama")),
        (TOKENS, Texts(tokens)),
        (SCORES, Numbers(scores)),
        (KINDS, Counts(kinds)),
    ]
}

const LLAMA: [(&str, f32, i32); 7] = [
    ("▁", -4.0, 1),
    ("a", -5.0, 1),
    ("b", -6.0, 1),
    ("▁a", -1.0, 1),
    ("ab", 0.0, 1),
    ("▁ab", -2.0, 1),
    ("<|end|>", -1000.0, 3),
];

/// A byte-level vocabulary: `<|end|>`, the bytes, then `words`.
fn byte_level_of(words: &[&str], merges: &[&str]) -> Entries {
    let mut tokens = vec!["<|end|>".to_owned()];
    // The characters that stand for bytes: those that can be seen, then as many from U+0100 on as it takes.
    let visible = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let rest = ('\u{100}'..).take(256 - visible.clone().count());
    tokens.extend(visible.chain(rest).map(String::from));
    let mut kinds = vec![3];
    tokens.extend(words.iter().map(|word| (*word).into()));
    kinds.resize(tokens.len(), 1);
    vec![
        (MODEL, Text("gpt2")),
        (PRE, Text("gpt-2")),
        (TOKENS, Texts(tokens)),
        (KINDS, Counts(kinds)),
        (MERGES, texts(merges)),
    ]
}

fn built(entries: &Entries) -> Bpe {
    tokenizer(&metadata(entries)).unwrap().unwrap()
}

fn ids(tokenizer: &Bpe, text: &str) -> Vec<u32> {
    tokenizer.encode_fast(text, true).unwrap().get_ids().into()
}

fn tokens(tokenizer: &Bpe, text: &str) -> Vec<String> {
    tokenizer.encode(text, true).unwrap().get_tokens().into()
}

#[test]
fn sentence_piece_merges_by_score() {
    let tokenizer = built(&sentence_piece_of(&LLAMA));
    // "ab" before "▁a", then the two that are left.
    assert_eq!(ids(&tokenizer, "ab"), [1, WORDS + 5]);
    assert_eq!(
        tokens(&tokenizer, "ab  aab"),
        ["<s>", "▁ab", "▁", "▁a", "ab"]
    );
    let mut other = LLAMA;
    other[5].0 = "ba";
    assert_eq!(
        tokens(&built(&sentence_piece_of(&other)), "ab"),
        ["<s>", "▁", "ab"]
    );
    other[4].1 = -3.0;
    assert_eq!(
        tokens(&built(&sentence_piece_of(&other)), "ab"),
        ["<s>", "▁a", "b"]
    );
}

#[test]
fn merges_of_equal_scores_prefer_a_long_left_side() {
    let words = ["▁", "▁▁", "▁▁▁", "x"].map(|text| (text, 0.0, 4));
    let json = serde_json::to_value(built(&sentence_piece_of(&words))).unwrap();
    let expected = json!([["▁▁", "▁"], ["▁", "▁▁"], ["▁", "▁"]]);
    assert_eq!(json["model"]["merges"], expected);
}

#[test]
fn what_is_no_token_becomes_bytes() {
    let tokenizer = built(&sentence_piece_of(&LLAMA));
    let found = tokens(&tokenizer, "aé\n");
    assert_eq!(found, ["<s>", "▁a", "<0xC3>", "<0xA9>", "<0x0A>"]);
    let found = ids(&tokenizer, "aé\n");
    assert_eq!(tokenizer.decode(&found, true).unwrap(), "aé\n");
}

#[test]
fn a_space_goes_before_a_text_unless_the_file_forbids_it() {
    let llama = sentence_piece_of(&LLAMA);
    let tokenizer = built(&llama);
    assert_eq!(tokens(&tokenizer, "b"), ["<s>", "▁", "b"]);
    // Not after special tokens, and none before a text that begins with one.
    assert_eq!(tokens(&tokenizer, "</s>b"), ["<s>", "</s>", "b"]);
    assert_eq!(tokens(&tokenizer, " b"), ["<s>", "▁", "b"]);
    assert_eq!(
        tokenizer.decode(&[WORDS + 3, WORDS + 2], true).unwrap(),
        "ab"
    );
    let tokenizer = built(&with(&llama, &[(SPACE, Flag(false))]));
    assert_eq!(tokens(&tokenizer, "b"), ["<s>", "b"]);
    assert_eq!(
        tokenizer.decode(&[WORDS + 3, WORDS + 2], true).unwrap(),
        " ab"
    );
}

#[test]
fn gemmas_runs_of_spaces_are_spelled_as_its_tokenizer_spells_them() {
    let words = [
        ("▁", -1.0, 1),
        ("  ", -1000.0, 4),
        ("x", -3.0, 1),
        ("\n\n", -1000.0, 4),
    ];
    let gemma = with(&sentence_piece_of(&words), &[(SPACE, Flag(false))]);
    let tokenizer = built(&with(&gemma, &[("general.architecture", Text("gemma3"))]));
    assert_eq!(
        tokens(&tokenizer, "   x\n\n"),
        ["<s>", "▁▁", "▁", "x", "\n\n"]
    );
    // Another family's may be what it looks like.
    let tokenizer = built(&with(&gemma, &[("general.architecture", Text("llama"))]));
    assert_eq!(tokens(&tokenizer, "  x"), ["<s>", "  ", "x"]);
}

#[test]
fn control_tokens_are_special_and_user_defined_ones_are_not() {
    let words = [
        ("<a>", 0.0, 3),
        ("<b>", 0.0, 4),
        ("<c>", 0.0, 1),
        ("<d>", 0.0, 5),
        ("<e>", 0.0, 2),
    ];
    let entries = with(
        &sentence_piece_of(&words),
        &[("tokenizer.ggml.padding_token_id", Count(WORDS + 3))],
    );
    let added = built(&entries).get_added_tokens_decoder();
    let mut added: Vec<_> = added
        .iter()
        .map(|(id, token)| (*id, &*token.content, token.special))
        .collect();
    added.sort_unstable();
    let expected = [
        (0, "<unk>", true),
        (1, "<s>", true),
        (2, "</s>", true),
        (WORDS, "<a>", true),
        (WORDS + 1, "<b>", false),
        // It pads.
        (WORDS + 3, "<d>", true),
    ];
    assert_eq!(added, expected);
}

#[test]
fn what_only_fills_the_vocabulary_up_is_in_no_text() {
    let text = format!("[PAD{}]", WORDS + 1);
    let words = [
        ("a", 0.0, 1),
        (&*text, -10.0, 4),
        ("", 0.0, 5),
        ("", 0.0, 1),
        ("[PAD7]", 0.0, 4),
    ];
    let tokenizer = built(&sentence_piece_of(&words));
    assert_eq!(tokenizer.get_vocab(true).len(), 261);
    assert_eq!(tokenizer.id_to_token(WORDS + 1), None);
    assert_eq!(tokenizer.id_to_token(WORDS + 4).unwrap(), "[PAD7]");
}

#[test]
fn what_goes_around_a_text_is_in_the_file_or_usual() {
    let around = |base: &Entries, others: &[_]| ids(&built(&with(base, others)), "");
    let llama = sentence_piece_of(&LLAMA);
    assert_eq!(around(&llama, &[]), [1]);
    let (no_bos, eos) = (
        ("tokenizer.ggml.add_bos_token", Flag(false)),
        ("tokenizer.ggml.add_eos_token", Flag(true)),
    );
    assert_eq!(
        around(&llama, std::slice::from_ref(&no_bos)),
        [] as [u32; 0]
    );
    assert_eq!(around(&llama, std::slice::from_ref(&eos)), [1, 2]);
    assert_eq!(around(&llama, &[no_bos, eos, (EOS, Count(5))]), [5]);
    let gpt2 = with(&byte_level_of(&[], &[]), &[(BOS, Count(0))]);
    assert_eq!(around(&gpt2, &[]), [] as [u32; 0]);
    assert_eq!(around(&gpt2, &[(PRE, Text("llama-bpe"))]), [0]);
}

#[test]
fn bytes_merge_as_listed() {
    let tokenizer = built(&byte_level_of(
        &["Ġb", "ab", "Ġbab"],
        &["Ġ b", "a b", "Ġb ab"],
    ));
    assert_eq!(
        tokens(&tokenizer, "ab bab<|end|>é"),
        ["ab", "Ġbab", "<|end|>", "Ã", "©"]
    );
    let found = ids(&tokenizer, "ab bab<|end|>é");
    assert_eq!(tokenizer.decode(&found, true).unwrap(), "ab babé");
}

#[test]
fn words_that_are_tokens_are_merged_where_the_file_says_so() {
    let entries = with(&byte_level_of(&["abc"], &[]), &[(BOS, Count(0))]);
    assert_eq!(tokens(&built(&entries), "abc"), ["a", "b", "c"]);
    let entries = with(&entries, &[(PRE, Text("llama-bpe"))]);
    assert_eq!(tokens(&built(&entries), "abc"), ["<|end|>", "abc"]);
}

/// Where every name in `tokenizer.ggml.pre` cuts a text.
#[test]
fn words_by_name() {
    let mut lines = String::new();
    for name in byte_level::names() {
        let entries = with(
            &byte_level_of(&[], &[]),
            &[(PRE, Text(name)), (BOS, Count(0))],
        );
        let tokenizer = built(&entries);
        let mut text = PreTokenizedString::from("I'LL don't  1234.5\n\n\tfoo_bar()… 你好ab Ａé");
        tokenizer
            .get_pre_tokenizer()
            .unwrap()
            .pre_tokenize(&mut text)
            .unwrap();
        let words = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let words: Vec<_> = words.iter().map(|(word, ..)| *word).collect();
        lines += &format!("{name}: {}\n", words.join(" "));
    }
    insta::assert_snapshot!(lines);
}

#[test]
fn older_files_name_no_words() {
    let entries = without(&byte_level_of(&[], &[]), PRE);
    let merged = |architecture| {
        let entries = with(&entries, &[("general.architecture", Text(architecture))]);
        tokenizer(&metadata(&entries)).map(|found| found.unwrap().get_pre_tokenizer().cloned())
    };
    let named = |name| {
        built(&with(&entries, &[(PRE, Text(name))]))
            .get_pre_tokenizer()
            .cloned()
    };
    for (architecture, name) in [("gpt2", "gpt-2"), ("falcon", "falcon"), ("qwen2", "qwen2")] {
        assert_eq!(merged(architecture).unwrap(), named(name));
    }
    assert!(merged("llama").is_err());
}

#[test]
fn a_file_without_a_tokenizer_has_none() {
    for entries in [vec![], vec![(MODEL, Text("no_vocab")), (EOS, Count(7))]] {
        let metadata = metadata(&entries);
        assert!(tokenizer(&metadata).unwrap().is_none());
        assert!(tokenizer_json(&metadata).unwrap().is_none());
        assert_eq!(end_tokens(&metadata).unwrap(), [7; 1][..entries.len() / 2]);
        assert!(
            tokenizer_config(&metadata)
                .unwrap()
                .get("bos_token")
                .is_none()
        );
    }
}

#[test]
fn settings_name_special_tokens_and_templates() {
    let llama = with(
        &sentence_piece_of(&LLAMA),
        &[
            ("tokenizer.ggml.padding_token_id", Count(2)),
            ("tokenizer.chat_template", Text("T")),
        ],
    );
    let config = tokenizer_config(&metadata(&llama)).unwrap();
    let expected = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false, "bos_token": "<s>",
        "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>", "chat_template": "T",
    });
    assert_eq!(Value::Object(config), expected);
    let several = with(
        &llama,
        &[
            ("tokenizer.chat_templates", texts(&["rag"])),
            ("tokenizer.chat_template.rag", Text("R")),
        ],
    );
    let config = tokenizer_config(&metadata(&several)).unwrap();
    let expected = json!([{"name": "default", "template": "T"}, {"name": "rag", "template": "R"}]);
    assert_eq!(config["chat_template"], expected);
    // A byte-level file that names no special tokens has none.
    let config = tokenizer_config(&metadata(&byte_level_of(&[], &[]))).unwrap();
    assert_eq!(
        config.keys().filter(|key| key.ends_with("_token")).count(),
        0
    );
}

#[test]
fn a_chat_ends_with_its_turns() {
    let entries = with(
        &sentence_piece_of(&LLAMA),
        &[("tokenizer.ggml.eot_token_id", Count(4)), (EOS, Count(2))],
    );
    assert_eq!(end_tokens(&metadata(&entries)).unwrap(), [2, 4]);
    let chat = with(&entries, &[("tokenizer.chat_template", Text("T"))]);
    assert_eq!(
        end_tokens(&metadata(&chat)).unwrap(),
        [2, 4, u64::from(WORDS) + 6]
    );
    // A word that looks like one is none.
    let plain = byte_level_of(&["<|im_end|>"], &[]);
    let plain = with(&plain, &[("tokenizer.chat_template", Text("T"))]);
    assert_eq!(end_tokens(&metadata(&plain)).unwrap(), [0]);
    // A tokenizer that is not read leaves what the file says.
    let other = with(&entries, &[(MODEL, Text("t5"))]);
    assert_eq!(end_tokens(&metadata(&other)).unwrap(), [2, 4]);
}

#[test]
fn every_error_names_the_key() {
    let llama = sentence_piece_of(&LLAMA);
    let gpt2 = byte_level_of(&["ab"], &["a b"]);
    let mut scores = vec![0.0; 266];
    scores[261] = f32::NAN;
    let mut kinds = vec![1; 266];
    kinds[3] = 9;
    let long = "x".repeat(1025);
    let cases = [
        with(&llama, &[(MODEL, Text("t5"))]),
        with(&llama, &[(MODEL, Count(3))]),
        without(&llama, TOKENS),
        with(&llama, &[(TOKENS, Numbers(vec![1.0]))]),
        sentence_piece_of(&[("a", 0.0, 1), ("b", 0.0, 1), ("a", 0.0, 4)]),
        sentence_piece_of(&[(&long, 0.0, 1)]),
        without(&llama, SCORES),
        with(&llama, &[(SCORES, Numbers(vec![0.0; 3]))]),
        with(&llama, &[(SCORES, Numbers(scores))]),
        with(&llama, &[(KINDS, Counts(vec![1; 3]))]),
        with(&llama, &[(KINDS, Counts(kinds))]),
        with(&llama, &[(KINDS, Counts(vec![-1; 266]))]),
        with(&llama, &[(BOS, Count(266))]),
        with(&llama, &[(SPACE, Count(1))]),
        with(&llama, &[("tokenizer.ggml.add_bos_token", Text("yes"))]),
        with(&gpt2, &[("tokenizer.ggml.add_bos_token", Flag(true))]),
        with(&gpt2, &[(PRE, Text("viking"))]),
        without(&gpt2, PRE),
        without(&gpt2, MERGES),
        with(&gpt2, &[(MERGES, texts(&["a b", "ab"]))]),
        with(&gpt2, &[(MERGES, texts(&["a q b"]))]),
        // Both are tokens, but not together; the library would panic.
        with(&gpt2, &[(MERGES, texts(&["<|end|> <|end|>"]))]),
    ];
    let message = |entries: &Entries| match tokenizer(&metadata(entries)) {
        Err(error) => format!("{error}\n"),
        Ok(_) => "none\n".to_owned(),
    };
    let mut messages: String = cases.iter().map(message).collect();
    let template = [("tokenizer.chat_templates", texts(&["rag"]))];
    let config = tokenizer_config(&metadata(&with(&llama, &template)));
    messages += &format!("{}\n", config.unwrap_err());
    insta::assert_snapshot!(messages);
}
