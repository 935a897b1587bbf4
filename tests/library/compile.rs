//! A prompt compiled: the same bits everywhere, better than nothing on queries that were left out, and refused where it cannot be done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{all_models, open, program, reference};
use context_patch::Model;
use context_patch::kernels::Level;
use context_patch::model::{self, ModelOptions};
use context_patch::patch::compile::{
    Asked, Estimate, FOLDS, Kept, Lesson, Prompt, Recipe, Role, Sample, States, Summary, Trial,
    compile, samples_hash,
};
use context_patch::patch::{ApplyMode, Error, Overlay, Patch, TensorChange};
use context_patch::tensor::Element;
use half::bf16;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const CONTEXT: &str = "Ann likes plums. Bob likes figs. Cleo likes pears.";

/// A prompt of the tiny model, and queries about it.
fn with_prompt<T>(model: &Model, context: &str, use_it: impl FnOnce(&Prompt<'_>) -> T) -> T {
    let tokenizer = model.checkpoint().tokenizer().unwrap();
    use_it(&Prompt {
        tokenizer: &tokenizer,
        template: None,
        context,
        stop: Some("."),
        answer_tokens: 6,
        second_turn: false,
    })
}

fn asked(queries: &[&str]) -> Vec<Asked> {
    let each = queries.iter().map(|query| Asked {
        query: (*query).to_owned(),
        answer: None,
    });
    each.collect()
}

const QUERIES: [&str; 9] = [
    " Ann likes",
    " Bob likes",
    " Cleo likes",
    " So Ann likes",
    " So Bob likes",
    " So Cleo likes",
    " Ann and Bob like",
    " Who likes figs?",
    " Who likes plums?",
];

/// Of another kind.
const OTHERS: [&str; 6] = [
    "The figs are",
    "Plums and pears",
    "Who is Bob?",
    "A tree has",
    "Ann, Bob and Cleo",
    "It is said that",
];

/// Lessons of queries of another kind.
fn away(model: &Model, queries: &[&str]) -> Vec<Lesson<f32>> {
    with_prompt(model, CONTEXT, |prompt| {
        let kept = &mut Kept::default();
        let samples = prompt.away::<f32>(model, &asked(queries), kept, || {});
        Lesson::all(model, &samples.unwrap(), || {}).unwrap()
    })
}

/// Queries that the model makes up beside `given`.
fn own(model: &Model, given: &[Sample], count: usize) -> Vec<Sample> {
    with_prompt(model, CONTEXT, |prompt| {
        let kept = &mut Kept::default();
        let own = prompt.more_samples::<f32>(model, given, count, 0, kept, || {});
        own.unwrap()
    })
}

/// Lessons of the queries with some numbers.
fn lessons<E: Element>(model: &Model, context: &str, queries: &[&str]) -> Vec<Lesson<E>> {
    with_prompt(model, context, |prompt| {
        let mut samples = prompt
            .samples::<E>(model, &asked(queries), &mut Kept::default(), || {})
            .unwrap();
        samples.extend(
            prompt
                .anchors::<E>(model, 4, 0, &mut Kept::default(), || {})
                .unwrap(),
        );
        Lesson::all(model, &samples, || {}).unwrap()
    })
}

fn compiled<E: Element>(model: &Model, lessons: &[Lesson<E>]) -> Patch {
    let all: Vec<_> = lessons.iter().collect();
    let recipe = Recipe {
        rank: 8,
        ..Recipe::new(model)
    };
    compile(model, &all, &recipe, || {}).unwrap()
}

/// KL a token of the lessons that are no anchors.
fn divergence<E: Element>(model: &Model, patch: Option<&Patch>, lessons: &[Lesson<E>]) -> f64 {
    let overlay = patch.map(|patch| Overlay::<E>::new(model, patch, ApplyMode::Overlay));
    let queries: Vec<_> = lessons
        .iter()
        .filter(|lesson| lesson.sample.role == Role::Query)
        .collect();
    Summary::new(&Trial::all(model, overlay.as_ref(), &queries).unwrap()).kl
}

fn hash(patch: &Patch) -> String {
    let mut hash = Sha256::new();
    for (i, layer) in patch.layers.iter().enumerate() {
        for (name, change) in layer {
            let TensorChange::LowRank(change) = change else {
                panic!("{name} is no matrix")
            };
            hash.update(format!("{i} {name}"));
            for x in change.u.as_slice().iter().chain(change.v.as_slice()) {
                hash.update(x.to_le_bytes());
            }
        }
    }
    hash.finalize()[..8]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// Pinned: what the model draws and what is solved must be the same at every level and thread count, and in every version.
#[test]
fn the_bits_are_the_same_everywhere() {
    fn digest<E: Element>(level: Level, threads: usize) -> String {
        let options = ModelOptions {
            level: Some(level),
            ..ModelOptions::default()
        };
        let model = Model::open_with(reference("tiny").to_str().unwrap(), options).unwrap();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let lessons = lessons::<E>(&model, CONTEXT, &QUERIES);
            let samples = samples_hash(lessons.iter().map(|lesson| &lesson.sample));
            format!(
                "{} {} {}\n",
                E::DTYPE,
                &samples[..16],
                hash(&compiled(&model, &lessons))
            )
        })
    }
    let all = |level, threads| {
        digest::<f64>(level, threads)
            + &digest::<f32>(level, threads)
            + &digest::<bf16>(level, threads)
    };
    let want = all(Level::best(), 2);
    for level in Level::available() {
        assert_eq!(all(level, 1), want, "{level}");
    }
    insta::assert_snapshot!(want);
}

/// On queries that it was not compiled from, and a patch of another prompt does not.
#[test]
fn it_serves_queries_that_were_left_out() {
    let model = open("tiny");
    let left_out = [" And Ann likes", " And Bob likes", " And Cleo likes"];
    let (used, left_out) = (
        lessons::<f32>(&model, CONTEXT, &QUERIES[..6]),
        lessons::<f32>(&model, CONTEXT, &left_out),
    );
    let other = lessons::<f32>(&model, "Dan likes kiwis. Eve likes limes.", &QUERIES[..6]);
    let bare = divergence(&model, None, &left_out);
    let patched = divergence(&model, Some(&compiled(&model, &used)), &left_out);
    let wrong = divergence(&model, Some(&compiled(&model, &other)), &left_out);
    assert!(patched < 0.5 * bare, "{patched} of {bare}");
    assert!(
        patched < 0.8 * wrong,
        "{patched}, and {wrong} with another prompt's patch"
    );
}

/// Compiled from few tokens with hardly anything held small, every family says of these what it says with the prompt.
#[test]
fn every_family_can_be_compiled() {
    for (dir, _) in all_models() {
        let model = open(&dir);
        let vocab = model.config().vocab_size as u32;
        let tokens =
            |seed: u32, count: u32| (0..count).map(|i| (seed + 7 * i * i + i) % vocab).collect();
        let context: Vec<u32> = tokens(3, 9);
        let first = &context[..1];
        let samples: Vec<_> = (0..3)
            .map(|i| {
                let query: Vec<u32> = tokens(20 + 11 * i, 4);
                let [with, without] = [&context[..], first].map(|begin| [begin, &query].concat());
                Sample::query(i as usize, &with, &without, &tokens(50 + 5 * i, 3))
            })
            .collect();
        let lessons = Lesson::<f64>::all(&model, &samples, || {}).unwrap();
        let recipe = Recipe {
            first: 0,
            lambda: 1e-9,
            rank: 0,
            ..Recipe::new(&model)
        };
        let all: Vec<_> = lessons.iter().collect();
        let patch = compile(&model, &all, &recipe, || {}).unwrap();
        patch.check(&model).unwrap();
        let (bare, patched) = (
            divergence(&model, None, &lessons),
            divergence(&model, Some(&patch), &lessons),
        );
        // Through a norm one step does not arrive; without one Lemma 9 does.
        let post_norm = model.layers()[0].outer.post_norm().is_some();
        let most = if post_norm { 0.5 } else { 1e-6 };
        assert!(patched < most * bare, "{dir}: {patched} of {bare}");
    }
}

/// What was written is not written again, and what was interrupted goes on where it stopped, with the same tokens.
#[test]
fn texts_that_were_interrupted_go_on() {
    let model = open("tiny");
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("texts.json");
    let sampled = |kept: &mut Kept, on_token: &mut dyn FnMut()| {
        with_prompt(&model, CONTEXT, |prompt| {
            let mut samples =
                prompt.samples::<f32>(&model, &asked(&QUERIES), kept, &mut *on_token)?;
            samples.extend(prompt.own_samples::<f32>(&model, 5, 7, kept, &mut *on_token)?);
            samples.extend(prompt.anchors::<f32>(&model, 5, 7, kept, on_token)?);
            Ok::<_, Error>(samples)
        })
    };
    let mut tokens = 0;
    let whole = sampled(&mut Kept::default(), &mut || tokens += 1).unwrap();
    let (mut interruptions, mut written) = (0, 0);
    let samples = loop {
        let cancel = Arc::new(AtomicBool::new(false));
        let mut kept = Kept::load(&file).unwrap().with_cancel(Arc::clone(&cancel));
        let mut here = 0;
        let samples = sampled(&mut kept, &mut || {
            here += 1;
            cancel.store(here >= 40, Ordering::Relaxed);
        });
        written += here;
        kept.save(&file).unwrap();
        match samples {
            Ok(samples) => break samples,
            Err(Error::Model(model::Error::Cancelled)) => interruptions += 1,
            Err(other) => panic!("{other}"),
        }
    };
    assert!(interruptions > 3);
    assert_eq!(written, tokens);
    assert_eq!(samples, whole);

    std::fs::write(&file, "no JSON").unwrap();
    assert!(matches!(Kept::load(&file), Err(Error::Kept { .. })));
}

/// In each compute type, and it is the files that they come from: another number in one is another patch.
#[test]
fn states_that_are_kept_are_those_that_were_computed() {
    fn kept<E: Element>(model: &Model) {
        let folder = TempDir::new().unwrap();
        let computed = lessons::<E>(model, CONTEXT, &QUERIES);
        let samples: Vec<_> = computed
            .iter()
            .map(|lesson| lesson.sample.clone())
            .collect();
        let states = States::new(folder.path(), model);
        let found = || {
            let mut seen = 0;
            let lessons = states.lessons::<E>(&samples, || seen += 1)?;
            assert_eq!(seen, samples.len());
            Ok::<_, Error>(hash(&compiled(model, &lessons)))
        };
        let want = hash(&compiled(model, &computed));
        assert_eq!(found().unwrap(), want, "{} computed", E::DTYPE);
        let files = std::fs::read_dir(folder.path()).unwrap();
        let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        assert_eq!(files.len(), 2, "the queries' and the texts'");
        assert_eq!(found().unwrap(), want, "{} read", E::DTYPE);

        let whole = std::fs::read(&files[0]).unwrap();
        let mut other = whole.clone();
        *other.last_mut().unwrap() ^= 1;
        std::fs::write(&files[0], &other).unwrap();
        assert_ne!(found().unwrap(), want, "{} changed", E::DTYPE);
        std::fs::copy(&files[1], &files[0]).unwrap();
        assert!(matches!(found(), Err(Error::KeptStates { .. })));
        std::fs::write(&files[0], &whole[..whole.len() - 1]).unwrap();
        assert!(matches!(found(), Err(Error::Checkpoint(_))));
    }
    let model = open("tiny");
    kept::<f64>(&model);
    kept::<f32>(&model);
    kept::<bf16>(&model);
}

/// A second turn comes behind a query that is left out with it, and is fitted alone.
#[test]
fn second_turns_are_left_out_with_their_first() {
    let model = open("tiny");
    let samples = with_prompt(&model, CONTEXT, |prompt| {
        let prompt = Prompt {
            second_turn: true,
            ..*prompt
        };
        let kept = &mut Kept::default();
        prompt
            .samples::<f32>(&model, &asked(&QUERIES), kept, || {})
            .unwrap()
    });
    let (first, second) = samples.split_at(QUERIES.len());
    assert_eq!(second.len(), QUERIES.len());
    for sample in second {
        let before = first
            .iter()
            .find(|first| sample.bare.starts_with(&first.bare))
            .unwrap();
        assert_ne!(before.about, sample.about);
        assert_eq!(before.about % FOLDS, sample.about % FOLDS);
        let new = sample.bare.len() - before.bare.len();
        assert_eq!(sample.rows(), new - 1);
    }
    // Too few for one to be behind another of its fold.
    let few = with_prompt(&model, CONTEXT, |prompt| {
        let prompt = Prompt {
            second_turn: true,
            ..*prompt
        };
        let kept = &mut Kept::default();
        prompt
            .samples::<f32>(&model, &asked(&QUERIES[..3]), kept, || {})
            .unwrap()
    });
    assert_eq!(few.len(), 3);
}

#[test]
fn what_cannot_be_compiled_is_refused() {
    let model = open("tiny");
    let refused = |queries: &[&str], context: &str| {
        with_prompt(&model, context, |prompt| {
            prompt
                .samples::<f32>(&model, &asked(queries), &mut Kept::default(), || {})
                .unwrap_err()
        })
    };
    let one = refused(&[" Ann likes", " Ann likes"], CONTEXT);
    assert!(matches!(one, Error::FewQueries { queries: 1 }), "{one}");
    let none = refused(&[], CONTEXT);
    assert!(matches!(none, Error::FewQueries { queries: 0 }), "{none}");
    let nothing = refused(&["Ann likes", "Bob likes"], "");
    assert!(matches!(nothing, Error::NothingToCompile), "{nothing}");

    let lessons = lessons::<f32>(&model, CONTEXT, &QUERIES[..3]);
    let all: Vec<_> = lessons.iter().collect();
    let usual = Recipe::new(&model);
    for (recipe, says) in [
        (Recipe { first: 99, ..usual }, "first layer is 99"),
        (
            Recipe {
                rank: 100_000,
                ..usual
            },
            "rank is 100000",
        ),
        (
            Recipe {
                lambda: f64::NAN,
                ..usual
            },
            "λ is NaN",
        ),
        (
            Recipe {
                lambda: 0.0,
                ..usual
            },
            "λ is 0",
        ),
        (Recipe { gain: 1.5, ..usual }, "gain is 1.5"),
        (
            Recipe {
                gain: f64::NAN,
                ..usual
            },
            "gain is NaN",
        ),
    ] {
        let refused = compile(&model, &all, &recipe, || {})
            .unwrap_err()
            .to_string();
        assert!(refused.contains(says), "{refused}");
    }
    let empty = Lesson::<f32>::all(&model, &[Sample::query(0, &[], &[], &[])], || {});
    assert!(empty.is_err());
    let long = vec![5; model.config().max_position_embeddings + 1];
    let long = Lesson::<f32>::all(&model, &[Sample::query(0, &long, &[2, 5], &[7])], || {});
    assert!(long.unwrap_err().to_string().contains("positions"));
}

/// The last layer goes all of its way, whatever the gain; those before it do not.
#[test]
fn a_gain_is_of_all_layers_but_the_last() {
    let model = open("tiny");
    let lessons = lessons::<f32>(&model, CONTEXT, &QUERIES);
    let all: Vec<_> = lessons.iter().collect();
    let last = model.layers().len() - 1;
    let of = |first, gain| {
        let recipe = Recipe {
            first,
            gain,
            ..Recipe::new(&model)
        };
        compile(&model, &all, &recipe, || {}).unwrap()
    };
    assert_eq!(hash(&of(last, 0.5)), hash(&of(last, 1.0)));
    assert_ne!(hash(&of(last - 1, 0.5)), hash(&of(last - 1, 1.0)));
}

/// Patches that were compiled before there was a gain went all of the way.
#[test]
fn a_recipe_without_a_gain_has_one_of_one() {
    let usual = Recipe::new(&open("tiny"));
    let mut recipe = serde_json::to_value(usual).unwrap();
    let read = |recipe| serde_json::from_value::<Recipe>(recipe).unwrap();
    assert_eq!(read(recipe.clone()), usual);
    recipe.as_object_mut().unwrap().remove("gain").unwrap();
    assert_eq!(read(recipe), Recipe { gain: 1.0, ..usual });
}

/// The estimate is of what was left out: compiled from all of it the same queries do better.
#[test]
fn the_estimate_is_not_the_in_sample_figure() {
    let model = open("tiny");
    let lessons = lessons::<f32>(&model, CONTEXT, &QUERIES);
    let recipe = Recipe {
        rank: 8,
        ..Recipe::new(&model)
    };
    let estimate = Estimate::new(&model, &lessons, &recipe, || {}).unwrap();
    assert_eq!(estimate.patched.samples, QUERIES.len());
    assert_eq!(estimate.elsewhere.samples, 4);
    let inside = divergence(&model, Some(&compiled(&model, &lessons)), &lessons);
    assert!(
        inside < estimate.patched.kl,
        "{inside} {}",
        estimate.patched.kl
    );
}

/// Of two recipes the one with which what is left out is less off, in whichever order they come: of queries alone the one that fits
/// them, and with texts that must not change the one that hardly changes anything, where these lose more than the queries gain.
#[test]
fn the_better_recipe_is_taken() {
    let model = open("tiny");
    let with_texts = lessons::<f32>(&model, CONTEXT, &QUERIES);
    let queries: Vec<_> = (with_texts.iter())
        .filter(|lesson| lesson.sample.role == Role::Query)
        .cloned()
        .collect();
    let fits = Recipe {
        first: 1,
        lambda: 1e-4,
        rank: 8,
        ..Recipe::new(&model)
    };
    let hardly = Recipe {
        lambda: 1e3,
        ..fits
    };
    for (lessons, better) in [(queries, fits), (with_texts, hardly)] {
        let estimate = Estimate::new(&model, &lessons, &better, || {}).unwrap();
        for (recipe, other) in [(fits, hardly), (hardly, fits)] {
            let best = Estimate::best(&model, &lessons, recipe, Some(other), || {}).unwrap();
            assert_eq!(best, (better, estimate.clone()));
        }
    }
}

/// What the folds' own passes come to is what the model says under their patches.
#[test]
fn an_estimate_is_of_what_its_patches_leave_out() {
    let model = open("tiny");
    let mut lessons = lessons::<f32>(&model, CONTEXT, &QUERIES);
    lessons.extend(away(&model, &OTHERS));
    let own = own(&model, &[], 5);
    assert!(!own.is_empty());
    lessons.extend(Lesson::all(&model, &own, || {}).unwrap());
    let recipe = Recipe {
        first: 2,
        rank: 8,
        ..Recipe::new(&model)
    };
    let tried = |used: &dyn Fn(usize, usize) -> bool| {
        let [mut queries, mut texts, mut away] = [const { Vec::new() }; 3];
        for fold in 0..FOLDS {
            let left_out = lessons
                .iter()
                .filter(|lesson| lesson.sample.role != Role::Own)
                .filter(|lesson| lesson.sample.about % FOLDS == fold);
            let left_out: Vec<_> = left_out.collect();
            let used = lessons.iter().filter(|lesson| {
                lesson.sample.role == Role::Own || used(lesson.sample.about % FOLDS, fold)
            });
            let used: Vec<_> = used.collect();
            let patch = compile(&model, &used, &recipe, || {}).unwrap();
            let overlay = Overlay::<f32>::new(&model, &patch, ApplyMode::Overlay);
            for (lesson, trial) in left_out
                .iter()
                .zip(Trial::all(&model, Some(&overlay), &left_out).unwrap())
            {
                match lesson.sample.role {
                    Role::Query => queries.push(trial),
                    Role::Text => texts.push(trial),
                    Role::Away => away.push(trial),
                    Role::Own => unreachable!("it is never left out"),
                }
            }
        }
        [&queries, &texts, &away].map(Summary::new)
    };
    let estimate = Estimate::new(&model, &lessons, &recipe, || {}).unwrap();
    let told = [estimate.patched, estimate.elsewhere, estimate.away];
    assert_eq!(told.map(|of| of.samples), [QUERIES.len(), 4, OTHERS.len()]);
    assert_eq!(told, tried(&|of, fold| of != fold));
    assert_ne!(told, tried(&|_, _| true), "in the sample it looks better");

    lessons.retain(|lesson| lesson.sample.role != Role::Own);
    let without_own = Estimate::new(&model, &lessons, &recipe, || {}).unwrap();
    assert_ne!(without_own.patched, estimate.patched);
}

/// What is asked in one of the queries that are given is not made up beside them.
#[test]
fn own_queries_are_others_than_those_that_are_given() {
    let model = open("tiny");
    let decode = |tokens: &[u32]| {
        let tokenizer = model.checkpoint().tokenizer().unwrap();
        tokenizer.decode(tokens).unwrap().trim_start().to_owned()
    };
    let text = |sample: &Sample| decode(&sample.bare[1..]);
    let all = own(&model, &[], 8);
    assert!(all.iter().all(|sample| sample.role == Role::Own));
    let (bare, answer) = all[0].bare.split_at(3);
    let given = Sample::query(0, &[2, 5, 6, 7], bare, answer);
    let asked = decode(&bare[1..]);
    let asks = |sample: &Sample| text(sample).starts_with(&asked);
    assert!(!asked.is_empty() && asks(&all[0]) && !all.iter().all(asks));
    let left = own(&model, &[given], 8);
    let want: Vec<_> = all.into_iter().filter(|sample| !asks(sample)).collect();
    assert_eq!(left, want);
}

/// A query of another kind is answered as without the prompt, where it is given as such and not otherwise.
#[test]
fn queries_of_other_kinds_are_left_alone() {
    let model = open("tiny");
    let (queries, away) = (
        lessons::<f32>(&model, CONTEXT, &QUERIES),
        away(&model, &OTHERS),
    );
    let captured = |patch: &Patch| {
        let overlay = Overlay::<f32>::new(&model, patch, ApplyMode::Overlay);
        let lessons: Vec<_> = away.iter().collect();
        Summary::new(&Trial::all(&model, Some(&overlay), &lessons).unwrap()).kl
    };
    let without = captured(&compiled(&model, &queries));
    let with = captured(&compiled(&model, &[queries.clone(), away.clone()].concat()));
    assert!(4.0 * with < without, "{with} {without}");
}

/// The command, as someone uses it.
#[test]
fn the_command_compiles_and_applies() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let queries: Vec<_> = QUERIES
        .iter()
        .map(|query| serde_json::json!(query).to_string())
        .collect();
    std::fs::write(file("queries.jsonl"), queries.join("\n")).unwrap();
    let compile = |more: &[&str]| {
        let output = file("a.patch");
        let queries = file("queries.jsonl");
        let fixed = [
            "compile",
            "--model",
            "tiny",
            "--context",
            CONTEXT,
            "--queries",
            &queries,
            "--anchors",
            "4",
            "--rank",
            "8",
            "--stop",
            ".",
            "--output",
            &output,
        ];
        program(dir.path()).args(fixed).args(more).output().unwrap()
    };
    let done = compile(&[]);
    assert!(done.status.success(), "{done:?}");
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(
        text.contains("get the same answer as with the prompt"),
        "{text}"
    );
    let once = std::fs::read(file("a.patch")).unwrap();
    assert!(compile(&["--threads", "1"]).status.success());
    assert!(
        std::fs::read(file("a.patch")).unwrap() == once,
        "another file the second time"
    );
    assert_eq!(compile(&["--at-least", "1.01"]).status.code(), Some(1));
    let inspected = program(dir.path())
        .args(["inspect", &file("a.patch")])
        .output()
        .unwrap();
    assert!(
        String::from_utf8(inspected.stdout)
            .unwrap()
            .contains("9 queries and 4 other texts")
    );
    let others = OTHERS.map(|query| serde_json::json!(query).to_string());
    std::fs::write(file("away.jsonl"), others.join("\n")).unwrap();
    let away = compile(&["--away", &file("away.jsonl")]);
    let text = String::from_utf8(away.stdout).unwrap();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        text.contains("9 queries, 4 other texts and 6 queries of other kinds")
            && text.contains("the same as without the patch"),
        "{text}"
    );
    let own = compile(&["--self", "3", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&own.stdout).unwrap();
    let made_from = &said["compiled"];
    assert_eq!(made_from["samples"], serde_json::json!([9, 4]), "{said}");
    assert!(made_from["own"].as_u64().unwrap() > 0, "{said}");
    assert_eq!(made_from["estimate"]["patched"]["samples"], 9, "{said}");
    let refused = compile(&["--away", &file("queries.jsonl")]);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.contains("\" Ann likes\" is among the queries"),
        "{said}"
    );
    let untried = compile(&["--no-estimate"]);
    let text = String::from_utf8(untried.stdout).unwrap();
    assert!(
        text.contains("9 queries") && !text.contains("Expect"),
        "{text}"
    );
    let both = compile(&["--no-estimate", "--at-least", "0.5"]);
    assert_eq!(both.status.code(), Some(2));
    // Written and kept, then taken from there.
    for _ in 0..2 {
        assert!(compile(&["--samples", &file("kept")]).status.success());
        assert!(std::fs::read(file("a.patch")).unwrap() == once);
    }
    for _ in 0..2 {
        let states = compile(&["--samples", &file("states"), "--keep-states"]);
        assert!(states.status.success(), "{states:?}");
        assert!(std::fs::read(file("a.patch")).unwrap() == once);
    }
    let kept = std::fs::read_dir(file("states")).unwrap();
    assert_eq!(kept.count(), 3, "texts, and states of queries and of texts");
    assert_eq!(compile(&["--keep-states"]).status.code(), Some(2));
    let kept: Vec<_> = std::fs::read_dir(file("kept")).unwrap().collect();
    let kept = kept[0].as_ref().unwrap().path();
    std::fs::write(&kept, "no JSON").unwrap();
    let refused = compile(&["--samples", &file("kept")]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no texts that were kept"));
    assert!(compile(&["--turns"]).status.success());
    assert!(
        std::fs::read(file("a.patch")).unwrap() != once,
        "second turns change nothing"
    );

    let apply = |more: &[&str]| {
        let fixed = ["apply", "--model", "tiny", "--patch", &file("a.patch")];
        program(dir.path()).args(fixed).args(more).output().unwrap()
    };
    let said = apply(&["--prompt", " Bob likes", "--max-tokens", "2"]);
    assert!(said.status.success(), "{said:?}");
    let notes = |done: std::process::Output| String::from_utf8(done.stderr).unwrap();
    assert!(!notes(said).contains("note:"));
    let in_template = apply(&["--prompt", " Bob likes", "--max-tokens", "2", "--chat"]);
    assert!(notes(in_template).contains("compiled without --chat"));
    let alone = apply(&[]);
    assert_eq!(alone.status.code(), Some(2));
    assert!(
        String::from_utf8(alone.stderr)
            .unwrap()
            .contains("--prompt TEXT")
    );
    std::fs::write(file("queries.jsonl"), "\" Ann likes\"\n{\"question\": 1}\n").unwrap();
    let refused = compile(&[]);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("line 2: it is no query"), "{said}");
}
