//! A real model's hashes, pinned in `snapshots`, at every level and in chosen ways.

use context_patch::Model;
use context_patch::checkpoint::Access;
use context_patch::kernels::Level;
use context_patch::model::ModelOptions;
use libtest_mimic::Trial;

use super::real::Real;
use super::ways::{AT_ONCE, Way, hashes};

/// A text that stays as it is.
const TEXT: &str = include_str!("../../LICENSE-APACHE");

/// Tokens for what would take minutes with more.
const SHORT: usize = 24;

/// Tokens whose logits are hashed, a megabyte each in f32.
const LAST: usize = 4;

/// `MODEL::bits::LEVEL` of some levels, `MODEL::bits::WAY` and a control, ignored where the model or the level is absent; of `long`
/// tokens where that does not take minutes.
pub fn trials(
    real: &'static Real,
    long: usize,
    levels: &[&'static str],
    ways: &[(&'static str, Way)],
    absent: bool,
) -> Vec<Trial> {
    let trial = |name: &str, absent: bool, test: Box<dyn FnOnce() + Send>| {
        let test = || {
            test();
            Ok(())
        };
        let name = format!("{}::bits::{name}", real.name);
        Trial::test(name, test).with_ignored_flag(absent)
    };
    let mut trials = Vec::new();
    for &name in levels {
        let level = name.parse::<Level>();
        let absent = absent || level.is_err();
        let test = Box::new(move || at_level(real, long, level.unwrap()));
        trials.push(trial(name, absent, test));
    }
    trials.push(trial("read", absent, Box::new(move || read(real))));
    for &(name, way) in ways {
        trials.push(trial(
            name,
            absent,
            Box::new(move || in_way(real, long, way)),
        ));
    }
    let control = Box::new(move || another_token_changes_every_hash(real));
    trials.push(trial("another_token_changes_every_hash", absent, control));
    trials
}

fn at_level(real: &Real, long: usize, level: Level) {
    let model = open(real, Some(level), Access::Mapped);
    check(real, &model, SHORT, AT_ONCE);
    if level != Level::Scalar {
        check(real, &model, long, AT_ONCE);
    }
}

fn read(real: &Real) {
    check(real, &open(real, None, Access::Read), SHORT, AT_ONCE);
}

/// At the best level.
fn in_way(real: &Real, long: usize, way: Way) {
    let slow = way.chunk == 1 || way.decoded >= long || way.company;
    check(real, real.model(), if slow { SHORT } else { long }, way);
}

fn another_token_changes_every_hash(real: &Real) {
    let mut ids = ids(real.model())[..SHORT].to_vec();
    let hashes = |ids: &[u32]| hashes("", real.model(), ids, LAST, AT_ONCE);
    let before = hashes(&ids);
    ids[SHORT / 2] += 1;
    for (before, after) in before.lines().zip(hashes(&ids).lines()) {
        assert_ne!(before, after);
    }
}

fn open(real: &Real, level: Option<Level>, access: Access) -> Model {
    let options = ModelOptions {
        level,
        access,
        ..ModelOptions::default()
    };
    Model::open_with(real.path().to_str().unwrap(), options).unwrap()
}

fn ids(model: &Model) -> Vec<u32> {
    let tokenizer = model.checkpoint().tokenizer().unwrap();
    tokenizer.encode(TEXT).unwrap()
}

fn check(real: &Real, model: &Model, tokens: usize, way: Way) {
    let hashes = hashes(real.name, model, &ids(model)[..tokens], LAST, way);
    insta::assert_snapshot!(format!("{}_{tokens}_tokens", real.name), hashes);
}
