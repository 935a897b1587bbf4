//! The 270M's hashes, pinned in `tests/gemma_270m/snapshots`, at every level and in every way.

use std::sync::OnceLock;

use context_patch::Model;
use context_patch::checkpoint::Access;
use context_patch::kernels::Level;
use context_patch::model::ModelOptions;
use libtest_mimic::Trial;

use crate::common::ways::{AT_ONCE, LEVELS, OTHERS, Way, hashes};
use crate::{directory, model};

/// A text that stays as it is.
const TEXT: &str = include_str!("../../LICENSE-APACHE");

/// Tokens for most ways: more than the window and what a sliding layer holds beyond it.
const LONG: usize = 800;

/// Tokens for what would take minutes with more.
const SHORT: usize = 24;

/// Tokens whose logits are hashed, a megabyte each in f32.
const LAST: usize = 4;

/// `bits::LEVEL`, `bits::WAY` and a control, ignored where the model or the level is absent.
pub fn trials(absent: bool) -> Vec<Trial> {
    let trial = |name: &str, absent: bool, test: Box<dyn FnOnce() + Send>| {
        let test = || {
            test();
            Ok(())
        };
        Trial::test(format!("bits::{name}"), test).with_ignored_flag(absent)
    };
    let mut trials = Vec::new();
    for name in LEVELS {
        let level = name.parse::<Level>();
        let absent = absent || level.is_err();
        let test = Box::new(move || at_level(level.unwrap()));
        trials.push(trial(name, absent, test));
    }
    trials.push(trial("read", absent, Box::new(read)));
    for (name, way) in OTHERS {
        trials.push(trial(name, absent, Box::new(move || in_way(way))));
    }
    let control = Box::new(another_token_changes_every_hash);
    trials.push(trial("another_token_changes_every_hash", absent, control));
    trials
}

fn at_level(level: Level) {
    let model = open(Some(level), Access::Mapped);
    check(&model, SHORT, AT_ONCE);
    if level != Level::Scalar {
        check(&model, LONG, AT_ONCE);
    }
}

fn read() {
    check(&open(None, Access::Read), SHORT, AT_ONCE);
}

/// At the best level.
fn in_way(way: Way) {
    let slow = way.chunk == 1 || way.decoded >= LONG || way.company;
    check(model(), if slow { SHORT } else { LONG }, way);
}

fn another_token_changes_every_hash() {
    let mut ids = ids(model())[..SHORT].to_vec();
    let hashes = |ids: &[u32]| hashes("", model(), ids, LAST, AT_ONCE);
    let before = hashes(&ids);
    ids[SHORT / 2] += 1;
    for (before, after) in before.lines().zip(hashes(&ids).lines()) {
        assert_ne!(before, after);
    }
}

fn open(level: Option<Level>, access: Access) -> Model {
    let options = ModelOptions {
        level,
        access,
        ..ModelOptions::default()
    };
    Model::open_with(directory().to_str().unwrap(), options).unwrap()
}

fn ids(model: &Model) -> &'static [u32] {
    static IDS: OnceLock<Vec<u32>> = OnceLock::new();
    IDS.get_or_init(|| {
        let tokenizer = model.checkpoint().tokenizer().unwrap();
        tokenizer.encode(TEXT).unwrap()
    })
}

fn check(model: &Model, tokens: usize, way: Way) {
    let hashes = hashes("gemma-3-270m", model, &ids(model)[..tokens], LAST, way);
    insta::assert_snapshot!(format!("{tokens}_tokens"), hashes);
}
