//! `--image`: what the commands make of pictures, and what they refuse in one line.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SEEING: &str = "reference/tiny-vision";
const PICTURE: &str = "reference/pictures/rgb-8.png";
const OTHER: &str = "reference/pictures/exif-6.png";
const PLACE: &str = "<start_of_image>";

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_context-patch"));
    let command = command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(arguments).output().unwrap()
}

/// What a command says in JSON, which must be done.
fn said(arguments: &[&str]) -> serde_json::Value {
    let output = run(&[arguments, &["--json"]].concat());
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {message}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The ids of a prompt.
fn ids(arguments: &[&str]) -> serde_json::Value {
    let generate = ["generate", "--model", SEEING, "--max-tokens", "1"];
    said(&[&generate, arguments].concat())["prompt_ids"].clone()
}

/// The one line of what a command refuses.
fn refused(arguments: &[&str]) -> String {
    one_line_of(&run(arguments))
}

/// The one line of an output that is an error's.
fn one_line_of(output: &Output) -> String {
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    assert!(output.stdout.is_empty());
    message.trim_end().to_owned()
}

fn refused_prompt(model: &str, prompt: &str, images: &[&str]) -> String {
    let images = images.iter().flat_map(|image| ["--image", image]);
    let command = ["generate", "--model", model, "--prompt", prompt];
    refused(&command.into_iter().chain(images).collect::<Vec<_>>())
}

#[test]
fn pictures_without_a_place_stand_before_the_text() {
    let images = ["--image", PICTURE, "--image", OTHER];
    let placed = format!("{PLACE}{PLACE}Which?");
    let placed = ids(&[&["--prompt", &placed][..], &images].concat());
    assert_eq!(
        ids(&[&["--prompt", "Which?"][..], &images].concat()),
        placed
    );
    let later = format!("Which?{PLACE}{PLACE}");
    assert_ne!(ids(&[&["--prompt", &later][..], &images].concat()), placed);
    let text = ids(&["--prompt", "Which?"]);
    assert!(placed.as_array().unwrap().len() > text.as_array().unwrap().len() + 32);
}

#[test]
fn a_chat_has_the_pictures_where_messages_would_have_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("messages.json");
    let parts = r#"[{"type": "image"}, {"type": "text", "text": "Which?"}]"#;
    let messages = format!(r#"[{{"role": "user", "content": {parts}}}]"#);
    std::fs::write(&file, messages).unwrap();
    let messages = ids(&["--messages", file.to_str().unwrap(), "--image", PICTURE]);
    assert_eq!(
        ids(&["--chat", "--prompt", "Which?", "--image", PICTURE]),
        messages
    );
    let behind = format!("Which?{PLACE}");
    assert_ne!(
        ids(&["--chat", "--prompt", &behind, "--image", PICTURE]),
        messages
    );
}

#[test]
fn ids_have_the_pictures_in_their_places() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ids.json");
    let write = |ids: &[u64]| std::fs::write(&file, format!("{ids:?}")).unwrap();
    let hashes = |name: &str, arguments: &[&str]| {
        let hashes = dir.path().join(name);
        let hash = [
            "--hash",
            hashes.to_str().unwrap(),
            "--names",
            "lm_head",
            "pixel_values",
        ];
        said(
            &[
                &["trace", "--model", SEEING, "--image", PICTURE],
                arguments,
                &hash,
            ]
            .concat(),
        );
        std::fs::read_to_string(hashes).unwrap()
    };
    let prompt = ids(&["--prompt", "Which?", "--image", PICTURE]);
    let mut prompt: Vec<u64> = serde_json::from_value(prompt).unwrap();
    write(&prompt);
    let given = file.to_str().unwrap();
    assert_eq!(
        hashes("ids", &["--ids", given]),
        hashes("text", &["--prompt", "Which?"])
    );
    // One token of the picture less, and none.
    let image = prompt
        .windows(2)
        .find(|pair| pair[0] == pair[1] && pair[0] != 0)
        .unwrap()[0];
    let at = prompt.iter().position(|id| *id == image).unwrap();
    prompt.remove(at);
    write(&prompt);
    let trace = ["trace", "--model", SEEING, "--ids", given, "--hash", "x"];
    let cut = refused(&[&trace[..], &["--image", PICTURE]].concat());
    assert!(
        cut.contains("15 tokens of images (id 8), but 1 images (--image) take 16 each"),
        "{cut}"
    );
    let without = refused(&trace);
    assert!(
        without.contains("15 tokens of images (id 8), but 0 images"),
        "{without}"
    );
    prompt.retain(|id| *id != image);
    write(&prompt);
    let none = refused(&[&trace[..], &["--image", PICTURE]].concat());
    assert!(none.contains("0 tokens of images"), "{none}");
}

#[test]
fn what_has_no_place_or_no_picture_is_said_in_one_line() {
    let twice = format!("{PLACE}{PLACE}?");
    for (error, part) in [
        (
            refused_prompt(SEEING, &twice, &[PICTURE]),
            "the prompt has 2 × <start_of_image>, but there are 1 pictures",
        ),
        (
            refused_prompt(SEEING, PLACE, &[]),
            "the prompt has 1 × <start_of_image>, but there are 0 pictures",
        ),
        (
            refused_prompt(SEEING, PLACE, &[PICTURE, OTHER]),
            "the prompt has 1 × <start_of_image>, but there are 2 pictures",
        ),
        (
            refused_prompt("reference/tiny", "a", &[PICTURE]),
            "takes no pictures: its model_type is not gemma3",
        ),
        (
            refused_prompt(SEEING, "a", &["Cargo.toml"]),
            "Cargo.toml is no picture that can be read",
        ),
        (
            refused_prompt(SEEING, "a", &["no/such.png"]),
            "cannot read no/such.png",
        ),
        (refused_prompt(SEEING, "a", &["src"]), "cannot read src"),
    ] {
        assert!(error.contains(part), "{error}");
    }
    let many = vec![PICTURE; 200];
    let many = refused_prompt(SEEING, "a", &many);
    assert!(many.contains("positions, the model has"), "{many}");
    let text = [
        "generate",
        "--model",
        SEEING,
        "--prompt",
        "a",
        "--pan-and-scan",
    ];
    let output = run(&text);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_patch_file_says_which_pictures_it_has_absorbed() {
    let dir = tempfile::tempdir().unwrap();
    let patch = dir.path().join("seen.patch");
    let patch = patch.to_str().unwrap();
    let context = format!("{PLACE}What colour is the circle?\nA:");
    let (context, image) = (["--context", &context], ["--image", PICTURE]);
    let command = ["patch", "--model", SEEING, "--output", patch];
    said(&[&command, &context[..], &image].concat());
    let images = said(&["inspect", patch])["images"].clone();
    let bytes = std::fs::read(root(PICTURE)).unwrap();
    let picture = context_patch::vision::Picture::decode(Path::new(PICTURE), &bytes).unwrap();
    let want = serde_json::json!([{
        "file": "rgb-8.png", "format": "png", "width": 43, "height": 61, "sha256": picture.sha256(),
    }]);
    assert_eq!(images, want);
    // What was seen is said without the picture.
    let generate = ["generate", "--model", SEEING, "--max-tokens", "1"];
    let prompt = ["--prompt", context[1]];
    let seen = said(&[&generate, &prompt[..], &image].concat());
    let apply = said(&[
        "apply",
        "--model",
        SEEING,
        "--patch",
        patch,
        "--max-tokens",
        "1",
    ]);
    assert_eq!(apply["ids"], seen["ids"]);
    assert_eq!(apply["own_input"], true);
    let text = said(&["inspect", patch]);
    assert!(text["split"]["tokens"].as_array().unwrap().len() > 16);
}

/// A picture whose header says another size, with the checksum that the header then has.
fn resized(png: &[u8], width: u32, height: u32) -> Vec<u8> {
    let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
    let header = [&png[12..16], &size, &png[24..29]].concat();
    let sum = !header.iter().fold(!0_u32, |sum, byte| {
        let step = |sum: u32, _| (sum >> 1) ^ (0xedb8_8320 * (sum & 1));
        (0..8).fold(sum ^ u32::from(*byte), step)
    });
    [&png[..12], &header, &sum.to_be_bytes(), &png[33..]].concat()
}

#[test]
fn what_is_no_sound_picture_is_said_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = |name: &str| std::fs::read(root("reference/pictures").join(name)).unwrap();
    let (png, jpeg) = (bytes("rgb-8.png"), bytes("exif-1.jpg"));
    let (gif, webp) = (bytes("plain.gif"), bytes("lossless.webp"));
    assert_eq!(resized(&png, 43, 61), png);
    for (name, bytes, part) in [
        ("empty.png", vec![], "is no picture that can be read"),
        ("a.png", b"a\nb".to_vec(), "is no picture that can be read"),
        ("cut.png", png[..60].to_vec(), "cannot be decoded as PNG"),
        ("cut.jpg", jpeg[..40].to_vec(), "cannot be decoded as JPEG"),
        (
            "cut.gif",
            gif[..gif.len() / 2].to_vec(),
            "cannot be decoded as GIF",
        ),
        (
            "cut.webp",
            webp[..webp.len() / 2].to_vec(),
            "cannot be decoded as WebP",
        ),
        ("lies.png", resized(&png, 9000, 9000), "cannot hold"),
        ("huge.png", resized(&png, 60000, 60000), "scale it down"),
        ("none.png", resized(&png, 0, 61), "cannot be decoded as PNG"),
    ] {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        let error = refused_prompt(SEEING, "a", &[file.to_str().unwrap()]);
        assert!(error.contains(part), "{error}");
        assert!(!error.contains("\\n"), "{error}");
    }
}

#[test]
fn every_command_refuses_what_is_no_picture_and_a_model_that_does_not_see() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = dir.path().join("prompts");
    std::fs::write(&prompts, "\"a\"").unwrap();
    let (prompts, patch) = (prompts.to_str().unwrap(), make_patch(dir.path()));
    for command in [
        &["generate", "--prompt", "a"][..],
        &["trace", "--prompt", "a", "--hash", "x"],
        &["patch", "--context", "a"],
        &["verify", "--prompts", prompts],
    ] {
        let with = |model, image| [command, &["--model", model, "--image", image]].concat();
        let error = refused(&with(SEEING, "Cargo.toml"));
        assert!(error.contains("Cargo.toml is no picture"), "{error}");
        let error = refused(&with("reference/tiny", PICTURE));
        assert!(error.contains("takes no pictures"), "{error}");
    }
    let apply = ["apply", "--model", SEEING, "--patch", &patch];
    let image = ["--prompt", "a", "--image", "Cargo.toml"];
    let error = refused(&[&apply[..], &image].concat());
    assert!(error.contains("Cargo.toml is no picture"), "{error}");
}

#[test]
fn pictures_stand_in_the_context_of_a_patch_and_do_not_stay() {
    let patch = [
        "patch",
        "--model",
        SEEING,
        "--context",
        "a",
        "--image",
        PICTURE,
    ];
    let refused = |more: &[&str]| refused(&[&patch[..], more].concat());
    for option in ["--query", "--answer"] {
        for text in [PLACE, "b<image_soft_token>"] {
            let error = refused(&[option, text]);
            assert!(error.contains("put it into the context"), "{error}");
        }
    }
    let stays = refused(&["--keep", "5"]);
    assert!(
        stays.contains("token 5 cannot stay: it is of an image"),
        "{stays}"
    );
    let answer = refused(&["--keep", "5", "--answer", "b"]);
    assert_eq!(answer, stays);
}

/// Makes a patch that has absorbed a picture.
fn make_patch(dir: &Path) -> String {
    let patch = dir.join("seen.patch").to_str().unwrap().to_owned();
    let context = ["--context", "Which?", "--image", PICTURE];
    let command = ["patch", "--model", SEEING, "--output", &patch];
    said(&[&command, &context[..]].concat());
    patch
}

#[test]
fn another_input_under_a_patch_may_have_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let patch = make_patch(dir.path());
    let apply = |arguments: &[&str]| {
        let apply = ["apply", "--model", SEEING, "--patch", &patch];
        let more = ["--max-tokens", "3", "--position", "5"];
        said(&[&apply[..], &more, arguments].concat())
    };
    let receipt = dir.path().join("receipt.json");
    let receipt = receipt.to_str().unwrap();
    let prompt = ["--prompt", "Which?", "--image", OTHER];
    let seen = apply(&[&prompt[..], &["--receipt", receipt]].concat());
    let prompt_ids = ids(&prompt);
    assert_eq!(seen["prompt_ids"], prompt_ids);
    assert_eq!(seen["own_input"], false);
    // The same tokens, given as ids.
    let file = dir.path().join("ids.json");
    std::fs::write(&file, prompt_ids.to_string()).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(apply(&["--ids", file, "--image", OTHER]), seen);
    // A chat is the one that generate has.
    let chat = ["--chat", "--prompt", "Which?", "--image", OTHER];
    assert_eq!(apply(&chat)["prompt_ids"], ids(&chat));
    // The receipt's own run has the same bits, with this picture and no other.
    let check = ["check", receipt, "--image"];
    assert_eq!(said(&[&check[..], &[OTHER]].concat())["same"], true);
    assert_eq!(
        run(&[&check[..], &[PICTURE]].concat()).status.code(),
        Some(1)
    );
    // What the picture shows counts: with another one the logits are others.
    let likeliest = |image: &str| {
        let prompt = ["--prompt", "Which?", "--image", image, "--logits", "3"];
        let apply = ["apply", "--model", SEEING, "--patch", &patch];
        said(&[&apply[..], &prompt].concat())["logits"].clone()
    };
    assert_ne!(likeliest(PICTURE), likeliest(OTHER));
}

#[test]
fn a_patch_s_own_input_takes_no_picture() {
    let dir = tempfile::tempdir().unwrap();
    let patch = make_patch(dir.path());
    let apply = ["apply", "--model", SEEING, "--patch", &patch];
    let refused = |arguments: &[&str]| refused(&[&apply[..], arguments].concat());
    let own = refused(&["--image", PICTURE]);
    assert!(own.contains("--image is for another input"), "{own}");
    let places = refused(&["--prompt", PLACE]);
    assert!(places.contains("but there are 0 pictures"), "{places}");
    let ids = dir.path().join("ids.json");
    std::fs::write(&ids, "[2, 8, 9]").unwrap();
    let ids = refused(&["--ids", ids.to_str().unwrap(), "--image", PICTURE]);
    assert!(ids.contains("1 tokens of images (id 8)"), "{ids}");
}

#[test]
fn a_report_shows_the_pictures_of_its_verification_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (prompts, steps, page) = (path("prompts"), path("steps"), path("page"));
    std::fs::write(&prompts, "\"Which?\"").unwrap();
    let verify = ["verify", "--model", SEEING, "--prompts", &prompts];
    let files = ["--image", PICTURE, "--steps", &steps, "--report", &page];
    let done = run(&[&verify[..], &files, &["--tokens", "1"]].concat());
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let index = |page: &str| std::fs::read_to_string(Path::new(page).join("index.html")).unwrap();
    let report = |name: &str, images: &[&str]| {
        let page = path(name);
        let mut command = vec!["report", &steps, "--output", &page];
        for image in images {
            command.extend(["--image", image]);
        }
        let output = run(&command);
        (output, page)
    };
    let (same, shown) = report("shown", &[PICTURE]);
    assert_eq!(same.status.code(), Some(0), "{same:?}");
    assert_eq!(index(&shown), index(&page));
    let thumbnail = "src=\"data:image/png;base64,";
    assert!(index(&shown).contains(thumbnail));
    let (_, named) = report("named", &[]);
    assert!(!index(&named).contains(thumbnail));
    assert!(index(&named).contains("rgb-8.png"));
    for (images, part) in [
        (&[OTHER][..], "picture 1 of the verification is rgb-8.png"),
        (
            &[PICTURE, OTHER],
            "picture 2 of the verification is none, and --image gives exif-6.png",
        ),
        (&["Cargo.toml"], "Cargo.toml is no picture"),
    ] {
        let (output, page) = report("refused", images);
        let error = one_line_of(&output);
        assert!(error.contains(part), "{error}");
        assert!(!Path::new(&page).exists());
    }
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
