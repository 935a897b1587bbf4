//! `context-patch verify`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use context_patch::kernels::{Backend, Level};
use context_patch::model::Model;
use context_patch::output::{check_writable, write_file};
use context_patch::patch::{Form, Method, Positions, Solver};
use context_patch::tensor::Dtype;
use context_patch::verify::{Crossing, Keep, PROMPTS, Step, Summary, Verification};
use context_patch::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

use super::platform::Platform;
use super::solving::SolvingArgs;
use super::table::table;
use super::{BROKEN, ModelArgs, OK, is_closed_output, print, refuse_empty, with_dtype};

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

/// One solver, compute type, form and platform, in `--json`.
#[derive(serde::Serialize)]
struct Run {
    solver: Solver,
    dtype: String,
    apply: String,
    solved_on: String,
    applied_on: String,
    #[serde(skip)]
    platform: Platform,
    summary: Summary,
    steps: Vec<Step>,
}

impl Run {
    fn name(&self) -> String {
        let Self {
            solver,
            dtype,
            apply,
            platform,
            ..
        } = self;
        format!("{solver} {dtype} {apply}{platform}")
    }
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
        let tokenizer = model.checkpoint().tokenizer()?;
        let ids: Vec<_> = prompts
            .iter()
            .map(|prompt| tokenizer.encode(prompt))
            .collect::<Result<_>>()?;
        let platforms = Platform::all(&self.backend);
        let rows = self.solver.len() * self.dtype.len() * self.apply.len() * platforms.len();
        let steps = prompts.len() * self.tokens as usize * rows;
        let bar = progress_bar(steps);
        let mut runs = Vec::new();
        for &solver in &self.solver {
            for &dtype in &self.dtype {
                for &form in &self.apply {
                    let method = self.solving.method(solver, form, dtype);
                    for &platform in &platforms {
                        bar.set_message(format!("{solver} {dtype} {form}{platform}"));
                        runs.push(self.verify(&model, platform, &ids, dtype, method, &bar)?);
                    }
                }
            }
        }
        bar.finish_and_clear();
        if let Some(file) = &self.json {
            write_json(file, &model, &prompts, &runs)?;
        }
        // The verdict does not depend on whether anyone reads the table.
        match print(&format!("{}{}", tables(&runs), verdict(&runs))) {
            Err(error) if !is_closed_output(&error) => return Err(error),
            _ => {}
        }
        let good = |run: &Run| run.summary.holds && run.summary.controls_fail;
        Ok(if runs.iter().all(good) { OK } else { BROKEN })
    }

    fn verify(
        &self,
        model: &Model,
        platform: Platform,
        prompts: &[Vec<u32>],
        dtype: Dtype,
        method: Method,
        bar: &ProgressBar,
    ) -> Result<Run> {
        let solved = model.clone().on(platform.solved);
        let applied = model.clone().on(platform.applied);
        let verification = Verification {
            model: &solved,
            tokens: self.tokens as usize,
            method,
            keep: self.keep,
            positions: self.positions,
        };
        let crossing = Crossing {
            solved: verification,
            applied: &applied,
        };
        // All of them before any work.
        prompts.iter().try_for_each(|ids| verification.check(ids))?;
        let mut steps = Vec::new();
        for (prompt, ids) in prompts.iter().enumerate() {
            let on_step = |step| {
                steps.push(step);
                bar.inc(1);
                Ok(())
            };
            with_dtype!(dtype, E => match platform.crosses() {
                false => verification.prompt::<E>(prompt, ids, on_step),
                true => crossing.prompt::<E>(prompt, ids, on_step),
            })?;
        }
        Ok(Run {
            dtype: dtype.to_string(),
            solver: method.solver,
            apply: method.form.to_string(),
            solved_on: platform.solved.to_string(),
            applied_on: platform.applied.to_string(),
            platform,
            summary: Summary::new(&steps),
            steps,
        })
    }
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

fn tables(runs: &[Run]) -> String {
    let header = [
        "",
        "tokens",
        "worst L∞",
        "median L∞",
        "of bound",
        "worst TVD",
        "hidden error",
        "max |Δm|",
    ];
    let figures = runs.iter().map(|run| {
        let s = &run.summary;
        vec![
            run.name(),
            format!("{}/{}", s.matching, s.tokens),
            format!("{:.1e}", s.worst_linf),
            format!("{:.1e}", s.median_linf),
            format!("{:.0} %", 100.0 * s.worst_share_of_bound),
            format!("{:.1e}", s.worst_tvd),
            format!("{:.1e}", s.worst_hidden_error),
            format!("{:.1e}", s.largest_delta_m),
        ]
    });
    let controls = runs.iter().flat_map(|run| {
        run.summary.controls.iter().map(|control| {
            vec![
                format!("{}: {}", run.name(), control.variant),
                format!("{}/{}", control.matching, run.summary.tokens),
                format!("{:.1}", control.smallest_linf),
                format!("{:.1}", control.median_linf),
            ]
        })
    });
    format!(
        "{}\nControls, which must fail:\n{}\n",
        table(&header, &figures.collect::<Vec<_>>()),
        table(
            &["", "tokens", "least L∞", "median L∞"],
            &controls.collect::<Vec<_>>()
        ),
    )
}

fn verdict(runs: &[Run]) -> String {
    let mut text = String::new();
    for run in runs {
        if let Some(step) = run.steps.iter().find(|step| !step.holds()) {
            text += &format!(
                "BROKEN: {}, first at prompt {} token {}: L∞ {:.1e}, bound {:.1e}, {} token\n",
                run.name(),
                step.prompt + 1,
                step.step + 1,
                step.patched.linf,
                step.bound,
                if step.patched.same_top {
                    "the same"
                } else {
                    "another"
                },
            );
        }
        if !run.summary.controls_fail {
            let why = match run.platform.crosses() {
                false => "these prompts matter little to the model",
                true => "the other platform's rounding may matter as much to the patch",
            };
            let name = run.name();
            text += &format!("NO POWER: {name}, a control is hardly off: {why}\n");
        }
    }
    match text.is_empty() {
        true => "Every bound holds, and every control fails.\n".into(),
        false => text,
    }
}

fn write_json(file: &Path, model: &Model, prompts: &[String], runs: &[Run]) -> Result<()> {
    let report = serde_json::json!({
        "model": model.checkpoint().name(),
        "model_hash": model.checkpoint().tensors().content_hash(),
        "version": env!("CARGO_PKG_VERSION"),
        "level": model.level().to_string(),
        "threads": rayon::current_num_threads(),
        "prompts": prompts,
        "runs": runs,
    });
    write_file(file, |out| {
        serde_json::to_writer(&mut *out, &report)?;
        writeln!(out)
    })
}
