//! The same bits, however a sequence is computed: one hash per model and compute type, pinned in
//! `tests/snapshots/bits__hashes.snap`, at every level and in every way.
//!
//! At every level a sequence goes through all its kernels. Threads, company and the files' access are the same code at each, and
//! are tried at the best. Tests that begin with a level that the machine lacks are reported as ignored.

mod common;

use bytes::Bytes;
use common::images::{PROMPTS, Pixels, Prompt, SEEING};
use common::ways::{AT_ONCE, FEW_TOKENS, LEVELS, OTHERS, Way, hash, hashes, levels_here};
use common::{Golden, all_models, gguf, open, reference};
use context_patch::checkpoint::{Access, Checkpoint};
use context_patch::kernels::Level;
use context_patch::model::ModelOptions;
use context_patch::tensor::Element;
use context_patch::{Model, Session};
use libtest_mimic::{Arguments, Trial};
use safetensors::SafeTensors;

fn main() {
    eprintln!("{}", levels_here());
    let levels = LEVELS.iter().flat_map(|level| of_level(level));
    let others: [(&str, fn()); 4] = [
        (
            "another_token_changes_the_hash",
            another_token_changes_the_hash,
        ),
        ("another_bit_changes_the_hash", another_bit_changes_the_hash),
        (
            "another_order_changes_the_hash",
            another_order_changes_the_hash,
        ),
        (
            "a_patch_leaves_the_model_alone",
            a_patch_leaves_the_model_alone,
        ),
    ];
    let others = others.map(|(name, test)| trial(name.into(), test));
    let quantised = FEW_TOKENS.map(|(name, way)| {
        trial(format!("quantised::{name}"), move || {
            quantised_are_pinned(Level::best(), way)
        })
    });
    let read = trial("read".into(), || {
        are_pinned(Level::best(), Access::Read, AT_ONCE);
    });
    let ways = OTHERS.map(|(name, way)| {
        trial(name.into(), move || {
            are_pinned(Level::best(), Access::Mapped, way);
        })
    });
    let trials = levels.chain(ways).chain([read]);
    let images = OTHERS.map(|(name, way)| {
        trial(format!("images::{name}"), move || {
            images_are_pinned(Level::best(), way);
        })
    });
    let trials = trials.chain(quantised).chain(images).chain(others);
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

fn trial(name: String, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, || {
        test();
        Ok(())
    })
}

/// The tests of one level, ignored where the machine lacks it.
fn of_level(name: &str) -> Vec<Trial> {
    let level = name.parse::<Level>();
    let pinned = |what: &str, way| {
        let absent = level.is_err();
        let level = level.clone();
        let test = move || are_pinned(level.unwrap(), Access::Mapped, way);
        trial(format!("{name}::{what}"), test).with_ignored_flag(absent)
    };
    let mut trials = vec![pinned("at_once", AT_ONCE)];
    trials.extend(FEW_TOKENS.map(|(what, way)| pinned(what, way)));
    let absent = level.is_err();
    let quantised = {
        let level = level.clone();
        move || quantised_are_pinned(level.unwrap(), AT_ONCE)
    };
    trials.push(trial(format!("{name}::quantised"), quantised).with_ignored_flag(absent));
    let images = move || images_are_pinned(level.unwrap(), AT_ONCE);
    trials.push(trial(format!("{name}::images"), images).with_ignored_flag(absent));
    trials
}

/// A model in each of ggml's types.
fn quantised_are_pinned(level: Level, way: Way) {
    let options = ModelOptions {
        level: Some(level),
        ..ModelOptions::default()
    };
    let of_type = |kind: (&str, u32, usize, usize, &[usize])| {
        let file = gguf::llama(kind).bytes();
        let checkpoint = Checkpoint::from_gguf(kind.0, file.into()).unwrap();
        let model = Model::from_checkpoint(checkpoint, options).unwrap();
        let ids: Vec<u32> = (0..24).map(|i| (i * i * 7 + 3) % 96).collect();
        hashes(kind.0, &model, &ids, usize::MAX, way)
    };
    let hashes: String = gguf::TYPES.into_iter().map(of_type).collect();
    insta::assert_snapshot!("quantised", hashes);
}

/// As many tokens as the model has positions, or what is more than any window and the room beyond it.
fn ids(model: &Model) -> Vec<u32> {
    let config = model.config();
    let id = |i| (i * i * 7 + 3) % config.vocab_size;
    let tokens = config.max_position_embeddings.min(512);
    (0..tokens).map(|i| id(i) as u32).collect()
}

fn are_pinned(level: Level, access: Access, way: Way) {
    let options = ModelOptions {
        level: Some(level),
        access,
        ..ModelOptions::default()
    };
    let of_model = |(dir, name): (String, String)| {
        let model = Model::open_with(reference(&dir).to_str().unwrap(), options).unwrap();
        hashes(&name, &model, &ids(&model), usize::MAX, way)
    };
    let hashes: String = all_models().into_iter().map(of_model).collect();
    insta::assert_snapshot!("hashes", hashes);
}

/// Prompts with images, text behind them, and one of images that together are more than enter a cache at once.
fn images_are_pinned(level: Level, way: Way) {
    let options = ModelOptions {
        level: Some(level),
        ..ModelOptions::default()
    };
    let mut all = String::new();
    for name in SEEING {
        let model = seeing(name, options);
        let golden = Golden::open(&format!("{name}.images"));
        let pixels = Pixels::of(&golden, &model);
        let image_token = model
            .checkpoint()
            .vision_config()
            .unwrap()
            .image_token_index;
        for prompt in PROMPTS {
            let mut prompt_of = Prompt::of(&golden, prompt, &pixels);
            let text = (0..40).map(|i| (i * i * 7 + 3) % image_token);
            prompt_of.ids.extend(text);
            let name = format!("{name}.{prompt}");
            all += &hashes(&name, &model, prompt_of.inputs(), usize::MAX, way);
        }
    }
    let model = seeing("vision-window", options);
    let pixels = Pixels::of(&Golden::open("vision-window.images"), &model);
    let images = 66;
    let prompt = Prompt {
        ids: [vec![7; 30], vec![92; 4 * images], vec![9; 20]].concat(),
        pixel_values: pixels.all().into_iter().cycle().take(images).collect(),
    };
    all += &hashes(
        "vision-window.long",
        &model,
        prompt.inputs(),
        usize::MAX,
        way,
    );
    insta::assert_snapshot!("images", all);
}

/// A random checkpoint that sees, with more positions than it has.
fn seeing(name: &str, options: ModelOptions) -> Model {
    let dir = reference(&format!("checkpoints/{name}"));
    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let positions = r#""max_position_embeddings": "#;
    assert_eq!(config.matches(&format!("{positions}256")).count(), 1);
    let longer = config.replace(&format!("{positions}256"), &format!("{positions}512"));
    let files = [
        ("config.json", longer.into()),
        (
            "model.safetensors",
            std::fs::read(dir.join("model.safetensors")).unwrap().into(),
        ),
    ];
    let checkpoint = Checkpoint::from_files(name, files).unwrap();
    Model::from_checkpoint(checkpoint, options).unwrap()
}

fn hash_of<E: Element>(model: &Model, ids: &[u32]) -> String {
    hash::<E>(model, ids, usize::MAX, AT_ONCE)
}

fn another_token_changes_the_hash() {
    for (dir, name) in all_models() {
        let model = &open(&dir);
        let ids = ids(model);
        let mut others = ids.clone();
        others[0] ^= 1;
        let all = |ids: &[u32]| hashes(&name, model, ids, usize::MAX, AT_ONCE);
        for (before, after) in all(&ids).lines().zip(all(&others).lines()) {
            assert_ne!(before, after);
        }
    }
}

/// A model built in memory from the files of a small one, some bytes of whose weights `change` has changed.
fn changed(dir: &str, change: impl FnOnce(&mut [u8])) -> Model {
    let file = |name: &str| std::fs::read(reference(dir).join(name)).unwrap();
    let mut weights = file("model.safetensors");
    change(&mut weights);
    let files = [
        ("config.json", Bytes::from(file("config.json"))),
        ("model.safetensors", Bytes::from(weights)),
    ];
    let checkpoint = Checkpoint::from_files("changed", files).unwrap();
    Model::from_checkpoint(checkpoint, ModelOptions::default()).unwrap()
}

/// Where a tensor of the first layer's MLP lies in a file, and its shape.
fn place(file: &[u8], projection: &str) -> (usize, [usize; 2]) {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let tensor = tensors.tensor(&format!("model.layers.0.mlp.{projection}.weight"));
    let tensor = tensor.unwrap();
    let start = tensor.data().as_ptr() as usize - file.as_ptr() as usize;
    (start, tensor.shape().try_into().unwrap())
}

/// The lowest bit of one weight.
fn another_bit_changes_the_hash() {
    let model = open("checkpoints/window-3");
    let ids = ids(&model);
    let other = changed("checkpoints/window-3", |file| {
        let (first, _) = place(file, "up_proj");
        file[first] ^= 1;
    });
    assert_ne!(hash_of::<f64>(&model, &ids), hash_of::<f64>(&other, &ids));
    assert_ne!(hash_of::<f32>(&model, &ids), hash_of::<f32>(&other, &ids));
}

/// Bytes of a weight of that model.
const SIZE: usize = 4;

/// The same function as exact arithmetic sees it: two terms of the sums over h change places. (bf16 may round the
/// difference away.)
fn another_order_changes_the_hash() {
    let dir = "checkpoints/window-3";
    let model = open(dir);
    let ids = ids(&model);
    let other = changed(dir, |file| {
        for projection in ["gate_proj", "up_proj"] {
            let (start, [_, cols]) = place(file, projection);
            swap(&mut file[start..], 0, cols * SIZE);
        }
        let (start, [rows, cols]) = place(file, "down_proj");
        for row in 0..rows {
            swap(&mut file[start..], row * cols * SIZE, SIZE);
        }
    });
    assert_ne!(hash_of::<f64>(&model, &ids), hash_of::<f64>(&other, &ids));
    assert_ne!(hash_of::<f32>(&model, &ids), hash_of::<f32>(&other, &ids));
}

/// Swaps two neighbours of `length` bytes, the first of which is at `start`.
fn swap(bytes: &mut [u8], start: usize, length: usize) {
    bytes[start..start + 2 * length].rotate_left(length);
}

fn a_patch_leaves_the_model_alone() {
    use context_patch::patch::{ApplyMode, Method, Overlay, Query, Solver, solve};
    let model = &open("checkpoints/window-3");
    let ids = ids(model);
    let before = hash_of::<f32>(model, &ids);
    let (&last, context) = ids.split_last().unwrap();
    for (form, solver) in [
        (ApplyMode::Overlay, Solver::Theorem1),
        (ApplyMode::Materialise, Solver::Theorem1),
        (ApplyMode::Overlay, Solver::AppendixB),
        (ApplyMode::Materialise, Solver::AppendixB),
        (ApplyMode::Overlay, Solver::ClosedForm),
        (ApplyMode::Materialise, Solver::ClosedForm),
    ] {
        let mut session = Session::<f32>::new(model);
        session.forward(context, 0).unwrap();
        let method = Method {
            form,
            ..Method::new(solver)
        };
        let solution = solve(&mut session, Query::alone(last), &method, &[]).unwrap();
        // The overlay of the patch, lent to a fresh session, says what the solver saw.
        let overlay = Overlay::<f32>::new(model, &solution.patch, form);
        let mut patched = Session::new(model).at(context.len()).with_overlay(&overlay);
        let logits = patched.forward(&[last], 1).unwrap();
        assert_eq!(logits.as_slice(), solution.reduced.as_slice(), "{form}");
        // And the contextual pass beside it is the plain one.
        let plain = Session::<f32>::new(model).forward(&ids, 1).unwrap();
        assert_eq!(plain.as_slice(), solution.contextual, "{form}");
    }
    assert_eq!(hash_of::<f32>(model, &ids), before);
}
