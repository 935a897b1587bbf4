//! `context-patch verify`.

use std::path::{Path, PathBuf};

use clap::Args;
use context_patch::kernels::{Backend, Level};
use context_patch::model::Model;
use context_patch::output::check_writable;
use context_patch::patch::{Form, Positions, Solver};
use context_patch::tensor::Dtype;
use context_patch::verify::{Crossing, Keep, Kind, Machine, PROMPTS, Record, Run, Setting};
use context_patch::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

use super::outcome::{conclude, write_json};
use super::solving::SolvingArgs;
use super::{ModelArgs, refuse_empty, with_dtype};

/// Check that the patched model without the prompt says what the model says with it
///
/// The paper's protocol: for every token the model writes after a prompt, all layers are patched anew, and
/// the patched model sees that token alone. Its logits are held against those of the model that sees
/// everything. Controls without the patch, and without one part of it, must be far off. With two backends also the
/// patches that were solved on one are applied on the other. Exit code 1 when a bound is broken or a control
/// is not off.
#[derive(Args)]
pub(super) struct Verify {
    #[command(flatten)]
    model: ModelArgs,

    /// Prompts to use, one JSON string a line [default: the paper's five]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,

    /// Tokens of each prompt
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,

    /// Solvers: theorem-1, appendix-b and closed-form patch every token anew; span solves one LoRA for all
    /// tokens of a prompt's answer
    #[arg(long, value_delimiter = ',', default_values_t = [Solver::ClosedForm])]
    solver: Vec<Solver>,

    /// Compute types: f64, f32, bf16
    #[arg(long, value_delimiter = ',', default_values_t = [Dtype::F32])]
    dtype: Vec<Dtype>,

    /// What multiplies matrices: native (the same bits everywhere) or gemm (the gemm crate, which promises no bits). With
    /// both, native→gemm is solved by the one and applied by the other
    #[arg(long, value_delimiter = ',', default_values_t = [Backend::Native])]
    backend: Vec<Backend>,

    /// How the patch is applied: overlay (factors beside the weights) or materialise (added to them and
    /// rounded)
    #[arg(long, value_delimiter = ',', default_values_t = [Form::Overlay])]
    apply: Vec<Form>,

    /// What of the prompt stays: nothing, bos (its first token) or half (the first half of it)
    #[arg(long, default_value_t = Keep::Nothing)]
    keep: Keep,

    /// Where the patched model sees its tokens: absolute (where they were) or natural (0, 1, 2, …)
    #[arg(long, default_value_t = Positions::Absolute)]
    positions: Positions,

    #[command(flatten)]
    solving: SolvingArgs,

    /// Write every figure of every token here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Verify {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        if let Some(file) = &self.json {
            check_writable(file)?;
        }
        let prompts = match &self.prompts {
            Some(file) => read_prompts(file)?,
            None => PROMPTS.map(str::to_owned).into(),
        };
        let model = self.model.open(level)?;
        prompts.iter().try_for_each(|prompt| refuse_empty(prompt))?;
        let setting = self.setting(&model, prompts)?;
        let mut record = Record::new(setting, vec![Machine::here(&model)]);
        let rows = record.runs.len();
        let bar = progress_bar(record.setting.prompts.len() * self.tokens as usize * rows);
        for run in &mut record.runs {
            bar.set_message(run.kind.to_string());
            verify(&model, &record.setting, run, &bar)?;
        }
        bar.finish_and_clear();
        if let Some(file) = &self.json {
            write_json(file, &record)?;
        }
        conclude(&record)
    }

    fn setting(&self, model: &Model, prompts: Vec<String>) -> Result<Setting> {
        let kinds = Kind::all(&self.solver, &self.dtype, &self.apply, &self.backend);
        Ok(Setting {
            tokens: self.tokens as usize,
            keep: self.keep,
            positions: self.positions,
            gain: self.solving.gain,
            layers: self.solving.layers,
            passes: self.solving.passes,
            ..Setting::new(model, prompts, kinds)?
        })
    }
}

fn verify(model: &Model, setting: &Setting, run: &mut Run, bar: &ProgressBar) -> Result<()> {
    let solved = model.clone().on(run.kind.solved_on);
    let applied = model.clone().on(run.kind.applied_on);
    let verification = setting.verification(run.kind, &solved);
    let crossing = Crossing {
        solved: verification,
        applied: &applied,
    };
    // All of them before any work.
    let prompts = &setting.prompt_ids;
    prompts.iter().try_for_each(|ids| verification.check(ids))?;
    for (prompt, ids) in prompts.iter().enumerate() {
        let on_step = |step| {
            run.steps.push(step);
            bar.inc(1);
            Ok(())
        };
        with_dtype!(run.kind.dtype, E => match run.kind.crosses() {
            false => verification.prompt::<E>(prompt, ids, on_step),
            true => crossing.prompt::<E>(prompt, ids, on_step),
        })?;
    }
    Ok(())
}

fn progress_bar(steps: usize) -> ProgressBar {
    let style = "{msg:28} {wide_bar} {pos}/{len} tokens, {per_sec}, {eta} left";
    let style =
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(steps as u64).with_style(style)
}

/// One JSON string a line.
fn read_prompts(file: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(file).map_err(|source| Error::Io {
        action: "read",
        path: file.into(),
        source,
    })?;
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let prompts: Vec<String> = lines
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|_| Error::Prompts {
                path: file.into(),
                line: number + 1,
            })
        })
        .collect::<Result<_>>()?;
    if prompts.is_empty() {
        return Err(Error::NoPrompts { path: file.into() });
    }
    Ok(prompts)
}
