//! Gemma 3 270M.

use std::collections::BTreeSet;

use crate::common::compared::{Bench, with_factor_and_scalar};
use crate::common::real::{Check, GOLDEN, Real, apply_writes_what_the_prompt_would};
use crate::common::ways::{FEW_TOKENS, LEVELS, OTHERS};
use crate::common::{pinned, processor, reference};
use context_patch::model::KnownBug;
use context_patch::patch::{ApplyMode, Method, Positions, Solver};
use context_patch::tensor::{Dtype, Element};
use context_patch::verify::{Keep, PROMPTS, Summary};
use context_patch::{Checkpoint, Model};
use half::bf16;
use libtest_mimic::{Failed, Trial};
use serde_json::Value;

static GEMMA: Real = Real::new("gemma-3-270m");

const TESTS: [(&str, Check); 11] = [
    ("verify_f64", verify_f64),
    ("verify_f32", verify_f32),
    ("verify_bf16", verify_bf16),
    ("verify_closed_form", verify_closed_form),
    (
        "verify_closed_form_with_half_the_context",
        verify_closed_form_with_half_the_context,
    ),
    ("span_absolute_f32", span_absolute_f32),
    ("span_absolute_f64", span_absolute_f64),
    ("span_natural", span_natural),
    (
        "apply_writes_what_the_prompt_would",
        apply_writes_what_the_prompt_would,
    ),
    ("compare_finds_known_bugs", compare_finds_known_bugs),
    (
        "prompts_with_pictures_are_those_of_transformers",
        prompts_with_pictures_are_those_of_transformers,
    ),
];

/// Tokens of most pinned hashes: more than the window and what a sliding layer holds beyond it.
const LONG: usize = 800;

pub fn trials() -> Vec<Trial> {
    let absent = GEMMA.absent();
    let ways = [&FEW_TOKENS[..], &OTHERS].concat();
    let checks = GOLDEN.into_iter().chain(TESTS);
    let trials = checks.map(|(name, check)| GEMMA.trial(name, check, absent));
    trials
        .chain(pinned::trials(&GEMMA, LONG, &LEVELS, &ways, absent))
        .collect()
}

/// Tokens a prompt; the tables of docs/verify.md have 20, by `context-patch verify`.
const TOKENS: usize = 6;

const FORMS: [ApplyMode; 2] = [ApplyMode::Overlay, ApplyMode::Materialise];

fn verify_f64(gemma: &Real) -> Result<(), Failed> {
    for form in FORMS {
        for solver in [Solver::Theorem1, Solver::AppendixB] {
            assert_eq!(
                gemma.protocol::<f64>(solver, form, TOKENS).matching,
                5 * TOKENS
            );
        }
    }
    Ok(())
}

fn verify_f32(gemma: &Real) -> Result<(), Failed> {
    for form in FORMS {
        for solver in [Solver::Theorem1, Solver::AppendixB] {
            assert_eq!(
                gemma.protocol::<f32>(solver, form, TOKENS).matching,
                5 * TOKENS
            );
        }
    }
    Ok(())
}

fn verify_bf16(gemma: &Real) -> Result<(), Failed> {
    for form in FORMS {
        for solver in [Solver::Theorem1, Solver::AppendixB] {
            // One ulp of a logit between 16 and 32.
            assert!(gemma.protocol::<bf16>(solver, form, TOKENS).worst_linf <= 0.125);
        }
    }
    Ok(())
}

/// The closed form leaves no bit of a logit different.
fn verify_closed_form(gemma: &Real) -> Result<(), Failed> {
    fn exact<E: Element>(gemma: &Real, form: ApplyMode) -> f64 {
        let summary = gemma.protocol::<E>(Solver::ClosedForm, form, TOKENS);
        assert_eq!((summary.matching, summary.worst_linf), (5 * TOKENS, 0.0));
        summary.largest_delta_m
    }
    for form in FORMS {
        let largest = exact::<f64>(gemma, form).max(exact::<bf16>(gemma, form));
        let theirs = gemma
            .protocol::<f32>(Solver::Theorem1, form, TOKENS)
            .largest_delta_m;
        assert!(largest.max(exact::<f32>(gemma, form)) < theirs / 1000.0);
    }
    Ok(())
}

/// Half of the context stays and runs through the patched weights.
fn verify_closed_form_with_half_the_context(gemma: &Real) -> Result<(), Failed> {
    fn exact<E: Element>(gemma: &Real, positions: Positions) {
        let method = Method::new(Solver::ClosedForm);
        let summary = Summary::new(&gemma.verify::<E>(method, Keep::Half, positions, 4, &PROMPTS));
        assert!(summary.controls_fail);
        assert_eq!(
            (summary.matching, summary.worst_linf),
            (20, 0.0),
            "{positions}"
        );
    }
    exact::<f64>(gemma, Positions::Absolute);
    exact::<f32>(gemma, Positions::Absolute);
    exact::<bf16>(gemma, Positions::Absolute);
    exact::<f32>(gemma, Positions::Natural);
    Ok(())
}

/// [`Real::span`] with absolute positions, of fewer prompts the longer it is: up to half a minute each. docs/lora.md has all of them.
fn span_absolute<E: Element>(gemma: &Real, form: ApplyMode, tokens: usize) -> Summary {
    let prompts = match (tokens, E::DTYPE) {
        (..50, Dtype::F32) => PROMPTS.len(),
        (..100, _) => 2,
        _ => 1,
    };
    let (keep, positions) = (Keep::Nothing, Positions::Absolute);
    gemma.span::<E>(form, keep, positions, tokens, &PROMPTS[..prompts])
}

fn span_absolute_f32(gemma: &Real) -> Result<(), Failed> {
    for (form, tokens) in [
        (ApplyMode::Materialise, 24),
        (ApplyMode::Materialise, 140),
        // Where rounding V alone would break the bound.
        (ApplyMode::Overlay, 64),
    ] {
        assert!(span_absolute::<f32>(gemma, form, tokens).worst_linf <= 1e-4);
    }
    Ok(())
}

fn span_absolute_f64(gemma: &Real) -> Result<(), Failed> {
    let summary = span_absolute::<f64>(gemma, ApplyMode::Materialise, 24);
    assert!(summary.worst_linf <= 1e-8);
    Ok(())
}

/// Token for token the same: the decode that generates gives the bits of the pass that checks.
fn span_natural(gemma: &Real) -> Result<(), Failed> {
    fn natural<E: Element>(gemma: &Real, form: ApplyMode, prompts: &[&str]) -> f64 {
        let summary = gemma.span::<E>(form, Keep::Bos, Positions::Natural, 24, prompts);
        summary.worst_linf
    }
    // docs/lora.md has all prompts in every form and type.
    let [overlay, materialise] = FORMS;
    assert!(natural::<f64>(gemma, materialise, &PROMPTS[..1]) <= 1e-8);
    assert!(natural::<f32>(gemma, materialise, &PROMPTS) <= 1e-4);
    assert!(natural::<f32>(gemma, overlay, &PROMPTS[..2]) <= 1e-4);
    natural::<bf16>(gemma, materialise, &PROMPTS[..2]);
    natural::<bf16>(gemma, overlay, &PROMPTS[..2]);
    Ok(())
}

/// More tokens than the window, so that its bugs show.
fn longer_than_the_window(gemma: &Real) -> Vec<u32> {
    let longest = gemma
        .prompts()
        .into_iter()
        .map(|prompt| prompt.ids)
        .max_by_key(Vec::len);
    let mut ids = longest.unwrap();
    ids.truncate(gemma.model().config().window(0).unwrap() + 20);
    ids
}

/// Every bug at its tensor and by its name, in the layers up to the first full one; without a bug nothing, anywhere.
fn compare_finds_known_bugs(gemma: &Real) -> Result<(), Failed> {
    let ids = longer_than_the_window(gemma);
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()?;
        let clean = Bench::new(gemma.model().clone(), ids[..24].to_vec(), &[]);
        pool.install(|| {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let report = clean.report(dtype, None);
                assert!(report.finding.is_none(), "{dtype}: {:?}", report.finding);
                assert_eq!(report.rows.len(), 363);
            }
        });
    }
    let globs: Vec<_> = (0..6).map(|i| format!("model.layers.{i}{{,.*}}")).collect();
    let globs = [&["model.embed_tokens".to_owned()], &globs[..]].concat();
    const BOTH: &[Dtype] = &[Dtype::F32, Dtype::Bf16];
    let bench = |model: &Model, tokens, globs: &[String], dtypes: &[Dtype]| {
        let bench = Bench::new(model.clone(), ids[..tokens].to_vec(), globs);
        for &dtype in dtypes {
            assert!(bench.report(dtype, None).finding.is_none(), "{dtype}");
        }
        bench
    };
    // Most bugs show in few tokens; some need more than the window has, and two a config that the 270M has not.
    let other = with_factor_and_scalar(&gemma.path());
    let benches = [
        (bench(gemma.model(), 24, &globs, BOTH), BOTH, KnownBug::ALL),
        (
            bench(&other, 24, &globs, BOTH),
            BOTH,
            &[KnownBug::RopeNoFactor, KnownBug::ScaleHeadDim],
        ),
        (
            bench(gemma.model(), ids.len(), &globs[..2], &BOTH[..1]),
            &BOTH[..1],
            &[
                KnownBug::WindowMinus1,
                KnownBug::WindowPlus1,
                KnownBug::WindowMissing,
            ],
        ),
    ];
    // What f32 shows is not looked for again in bf16; tests/compare.rs looks for all in both.
    let mut found = BTreeSet::new();
    for (bench, dtypes, bugs) in &benches {
        for &dtype in *dtypes {
            let left = bugs.iter().copied();
            let left: Vec<_> = left.filter(|bug| !found.contains(bug.name())).collect();
            found.extend(bench.find(dtype, &left).into_iter().map(KnownBug::name));
        }
    }
    // Those of Gemma 3, but for a window in full layers: the first of them is not among the layers that are recorded.
    assert_eq!(found.len(), 20, "{found:?}");
    Ok(())
}

/// All Gemma 3 models have one tokenizer: that of this one in a small checkpoint that sees.
fn prompts_with_pictures_are_those_of_transformers(gemma: &Real) -> Result<(), Failed> {
    let seeing = reference("checkpoints/vision-window");
    let mut config: Value = serde_json::from_slice(&std::fs::read(seeing.join("config.json"))?)?;
    config["text_config"]["vocab_size"] = 262_208.into();
    for (token, id) in [("boi", 255_999), ("eoi", 256_000), ("image", 262_144)] {
        config[format!("{token}_token_index")] = id.into();
    }
    let mut files = vec![("config.json", config.to_string().into())];
    for (folder, name) in [
        (&seeing, "model.safetensors"),
        (&seeing, "preprocessor_config.json"),
        (&gemma.path(), "tokenizer.json"),
        (&gemma.path(), "tokenizer_config.json"),
    ] {
        files.push((name, std::fs::read(folder.join(name))?.into()));
    }
    processor::check("gemma-3-270m", &Checkpoint::from_files("seeing", files)?);
    Ok(())
}
