//! Files of steps: whatever the bytes, a verification or an error of one line; what is written is read again, in any order
//! and cut off anywhere; and what contradicts itself is refused.
#![no_main]

mod number;

use std::path::Path;

use arbitrary::{Result, Unstructured};
use context_patch::kernels::Backend;
use context_patch::model::EmbeddingScale;
use context_patch::patch::{
    ApplyMode, LayerReport, Part, Positions, Solver, SolverReport, Variant,
};
use context_patch::tensor::Dtype;
use context_patch::verify::{
    Control, Keep, Kind, LogitsDistance, Machine, Record, Setting, Step, steps_file,
};
use libfuzzer_sys::fuzz_target;
use number::number;

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    let mut u = Unstructured::new(bytes);
    if let Ok(record) = record(&mut u) {
        let lines = lines(&record);
        let _ = whole(&mut u, lines.clone(), &record);
        let _ = damaged(&mut u, lines);
    }
});

/// Any bytes.
fn read(bytes: &[u8]) {
    match steps_file::parse(Path::new("steps.jsonl"), bytes) {
        Ok((record, whole)) => {
            assert!(whole as usize <= bytes.len());
            assert!(bytes[whole as usize..].iter().all(|byte| *byte != b'\n'));
            there_and_back(&record);
            counts(&record);
        }
        Err(error) => assert_eq!(error.to_string().lines().count(), 1, "{error}"),
    }
}

/// What is written is read again.
fn there_and_back(record: &Record) {
    let text = lines(record).concat();
    let (again, whole) = steps_file::parse(Path::new("again.jsonl"), &text[..]).unwrap();
    assert_eq!(whole as usize, text.len());
    assert_eq!(lines(&again).concat(), text);
}

/// What is there and what is missing are all.
fn counts(record: &Record) {
    let setting = &record.setting;
    let there: usize = record.runs.iter().map(|run| run.steps.len()).sum();
    let kinds = setting.kinds.iter().map(|kind| setting.steps(*kind));
    let steps = kinds.fold(0, usize::saturating_add);
    if let Some(all) = steps.checked_mul(setting.prompts.len()) {
        let missing = record.missing();
        assert_eq!(missing.map_or(0, |missing| missing.0), all - there);
    }
}

/// The lines in another order, some of them twice, cut off somewhere behind the first.
fn whole(u: &mut Unstructured<'_>, mut lines: Vec<Vec<u8>>, record: &Record) -> Result<()> {
    for _ in 0..u.int_in_range(0..=4)? {
        let (a, b) = (
            u.int_in_range(1..=lines.len() - 1)?,
            u.int_in_range(1..=lines.len() - 1)?,
        );
        lines.swap(a, b);
        lines.push(lines[b].clone());
    }
    let text = lines.concat();
    let (again, whole) = steps_file::parse(Path::new("whole.jsonl"), &text[..]).unwrap();
    assert_eq!(whole as usize, text.len());
    let machines = again.machines.clone();
    let sorted = Record {
        machines,
        ..record.clone()
    };
    assert_eq!(self::lines(&again), self::lines(&sorted));
    let cut = u.int_in_range(lines[0].len()..=text.len())?;
    let (part, whole) = steps_file::parse(Path::new("cut.jsonl"), &text[..cut]).unwrap();
    assert!(whole as usize <= cut);
    there_and_back(&part);
    counts(&part);
    Ok(())
}

/// A line more, one left out, a byte changed, or a step with another figure.
fn damaged(u: &mut Unstructured<'_>, mut lines: Vec<Vec<u8>>) -> Result<()> {
    let at = u.choose_index(lines.len())?;
    match u.int_in_range(0..=3)? {
        0 => lines.insert(at, u.arbitrary()?),
        1 => drop(lines.remove(at)),
        2 => {
            let byte = u.choose_index(lines[at].len())?;
            lines[at][byte] = u.arbitrary()?;
        }
        _ => {
            let line = String::from_utf8_lossy(&lines[at]).into_owned();
            if let Some((before, after)) = line.split_once("\"token\":") {
                let other = format!("{before}\"token\":1{after}");
                lines.push(other.into_bytes());
                let refused = steps_file::parse(Path::new("twice.jsonl"), &lines.concat()[..]);
                assert!(refused.is_err());
            }
        }
    }
    read(&lines.concat());
    Ok(())
}

/// The lines of a record's file.
fn lines(record: &Record) -> Vec<Vec<u8>> {
    let mut text = Vec::new();
    steps_file::write(record, &mut text).unwrap();
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    lines.map(<[u8]>::to_vec).collect()
}

/// Any verification of a few steps.
fn record(u: &mut Unstructured<'_>) -> Result<Record> {
    let solvers = [*u.choose(&Solver::ALL)?, *u.choose(&Solver::ALL)?];
    let dtypes = [*u.choose(&[Dtype::F64, Dtype::F32, Dtype::Bf16])?];
    let backends = &[Backend::Native, Backend::Gemm][..if u.ratio(1, 8)? { 2 } else { 1 }];
    let tokens = u.int_in_range(1..=2)?;
    let prompts: Vec<String> = vec![u.arbitrary()?, u.arbitrary()?];
    let setting = Setting {
        model: u.arbitrary()?,
        model_hash: "h".into(),
        config_hash: "c".into(),
        embedding_scale: *u.choose(&[EmbeddingScale::Compute, EmbeddingScale::Bf16])?,
        version: u.arbitrary()?,
        prompt_ids: vec![u.arbitrary()?; prompts.len()],
        images: Vec::new(),
        pan_and_scan: u.arbitrary()?,
        prompts,
        tokens,
        keep: *u.choose(&[Keep::Nothing, Keep::Bos, Keep::Half])?,
        positions: *u.choose(&[Positions::Absolute, Positions::Natural])?,
        gain: u.arbitrary::<Option<i8>>()?.map(f64::from),
        layers: u.arbitrary()?,
        passes: u.arbitrary()?,
        kinds: Kind::all(&solvers, &dtypes, &[ApplyMode::Overlay], backends),
    };
    let machine = Machine {
        level: "scalar".into(),
        threads: u.arbitrary()?,
        arch: u.arbitrary()?,
        os: u.arbitrary()?,
        cpu: u.arbitrary()?,
    };
    let mut record = Record::new(setting, vec![machine]);
    for run in &mut record.runs {
        for prompt in 0..record.setting.prompts.len() {
            for index in 0..record.setting.steps(run.kind) {
                if u.ratio(2, 3)? {
                    run.steps.push(step(u, prompt, index)?);
                }
            }
        }
    }
    Ok(record)
}

fn step(u: &mut Unstructured<'_>, prompt: usize, step: usize) -> Result<Step> {
    let comparison = |u: &mut Unstructured<'_>| {
        Ok(LogitsDistance {
            linf: number(u)?,
            tvd: number(u)?,
            top: u.arbitrary()?,
            same_top: u.arbitrary()?,
        })
    };
    let layer = LayerReport {
        residual: number(u)?,
        condition: number(u)?,
        ..LayerReport::default()
    };
    let report = SolverReport {
        layers: vec![layer; u.int_in_range(0..=1)?],
        passes: Vec::new(),
    };
    let parts = [Part::GateUp, Part::Down, Part::Scale].map(Variant::Without);
    let variants = [Variant::NoPatch].into_iter().chain(parts);
    let controls = variants.take(u.int_in_range(0..=4)?).map(|variant| {
        let reduced = comparison(u)?;
        Ok(Control { variant, reduced })
    });
    Ok(Step {
        prompt,
        step,
        controls: controls.collect::<Result<_>>()?,
        token: u.arbitrary()?,
        position: u.arbitrary()?,
        next: u.arbitrary()?,
        logits: u.arbitrary()?,
        margin: number(u)?,
        bound: number(u)?,
        patched: comparison(u)?,
        report: u.arbitrary::<bool>()?.then_some(report),
    })
}
