//! `context-patch verify`.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use clap::Args;
use context_patch::Result;
use context_patch::kernels::{Backend, Level};
use context_patch::model::{self, Model};
use context_patch::output::{check_new_dir, check_writable};
use context_patch::patch::{ApplyMode, Positions, Solver};
use context_patch::receipt::VerificationReceipt;
use context_patch::tensor::Dtype;
use context_patch::verify::{
    Error, Keep, Kind, Machine, PROMPTS, Record, Setting, Shard, StepsFile, campaign,
};

use super::images::{ImageArgs, Prompt, Written};
use super::outcome::{conclude, write_json, write_report};
use super::progress::{bar, waiting};
use super::solving::SolvingArgs;
use super::text::{parse_prompts, read_input};
use super::{ModelArgs, refuse_empty, signals};

/// Check that the patched model without the prompt says what the model says with it
///
/// The paper's protocol: for every token the model writes after a prompt, all layers are patched anew, and
/// the patched model sees that token alone. Its logits are held against those of the model that sees
/// everything. Controls without the patch, and without one part of it, must be far off. With two backends also the
/// patches that were solved on one are applied on the other. Exit code 1 when a bound is broken or a control
/// is not off.
#[derive(Args)]
#[command(before_help = EXAMPLES, after_long_help = CAMPAIGN)]
pub(super) struct Verify {
    #[command(flatten)]
    model: ModelArgs,

    /// Prompts to use, one JSON string a line; - is standard input [default: the paper's five]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,

    #[command(flatten)]
    images: ImageArgs,

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
    #[arg(long, value_delimiter = ',', default_values_t = [ApplyMode::Overlay])]
    apply: Vec<ApplyMode>,

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

    /// Make this folder with a page about it: index.html with figures, and figures.json, which they were drawn from
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,

    /// Write to FILE what this was made of and a hash of every token's logits, for `context-patch check`
    #[arg(long, value_name = "FILE", conflicts_with = "shard")]
    receipt: Option<PathBuf>,

    /// Append every token here as soon as it is done, one JSON object a line. Where the file is there already, the
    /// verification goes on where it ended, however it ended: for runs of hours
    #[arg(long, value_name = "FILE")]
    steps: Option<PathBuf>,

    /// Do only the I-th of N shares, I from 1: every N-th pair of a row and a prompt. Each into a file of its own, which
    /// `report` joins
    #[arg(long, value_name = "I/N", requires = "steps")]
    shard: Option<Shard>,
}

const EXAMPLES: &str = "\
Example, with the small model that is built in:
  context-patch verify --model tiny --tokens 4

The paper's protocol on the real model, with every figure and a page of charts:
  context-patch verify --model models/gemma-3-270m --dtype f64,f32,bf16 \\
      --json verified.json --report verified";

const CAMPAIGN: &str = "\
Long runs, the first of which goes on when it is given again after it was killed:
  context-patch verify --model M --prompts P --steps all.jsonl
  context-patch verify --model M --prompts P --steps 3.jsonl --shard 3/8
  context-patch report *.jsonl --json all.json";

impl Verify {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        for file in self.json.iter().chain(&self.receipt) {
            check_writable(file)?;
        }
        if let Some(dir) = &self.report {
            check_new_dir(dir)?;
        }
        let prompts = match &self.prompts {
            Some(file) => parse_prompts(file, &read_input(file)?)?,
            None => PROMPTS.map(str::to_owned).into(),
        };
        prompts.iter().try_for_each(|prompt| refuse_empty(prompt))?;
        let (model, setting, seen) = waiting("Reading the model", || -> Result<_> {
            let model = self.model.open(level)?;
            let mut setting = self.setting(&model, prompts)?;
            let seen = self.see(&model, &mut setting)?;
            Ok((model, setting, seen))
        })?;
        let pixel_values: Vec<_> = seen.iter().map(Prompt::pixel_values).collect();
        setting.check(&model, &pixel_values)?;
        let machine = Machine::here(&model);
        let (mut file, mut record) = match &self.steps {
            None => (None, Record::new(setting, vec![machine])),
            Some(path) => {
                let (file, record) = StepsFile::open(path, setting, machine)?;
                (Some(file), record)
            }
        };
        let shard = self.shard.unwrap_or(Shard::WHOLE);
        let (done, all) = shard.progress(&record);
        let bar = bar(done, all);
        let cancel = signals::cancel();
        let unsolved = campaign::run(&model, &mut record, &pixel_values, shard, |kind, step| {
            bar.set_message(kind.to_string());
            bar.inc(1);
            if let Some(file) = &mut file {
                file.push(kind, step)?;
            }
            if cancel.load(Ordering::Relaxed) {
                return Err(model::Error::Cancelled.into());
            }
            Ok(())
        });
        let done = bar.position();
        bar.finish_and_clear();
        if let Err(Error::Model(model::Error::Cancelled)) = unsolved {
            let kept = match self.steps {
                Some(_) => "the same command goes on there",
                None => "--steps FILE would have kept them",
            };
            eprintln!("interrupted after {done} of {all} tokens; {kept}");
        }
        let unsolved = unsolved?;
        if let Some(file) = &self.json {
            write_json(file, &record)?;
        }
        if let Some(dir) = &self.report {
            let pictures = seen.first().map_or(&[][..], |prompt| &prompt.pictures);
            write_report(dir, &record, pictures, model.checkpoint())?;
        }
        let code = conclude(&record)?;
        if let Some(error) = unsolved {
            return Err(error.into());
        }
        if let Some(file) = &self.receipt {
            VerificationReceipt::new(&model, &record)?.write(file)?;
        }
        Ok(code)
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

    /// Puts the pictures into every prompt, where there are any.
    fn see(&self, model: &Model, setting: &mut Setting) -> Result<Vec<Prompt>> {
        let checkpoint = model.checkpoint();
        if !self.images.concern(checkpoint) {
            return Ok(Vec::new());
        }
        let tokenizer = checkpoint.tokenizer()?;
        let prompt = |text: &String| {
            let text = Written::Text(text);
            self.images.prompt(checkpoint, &tokenizer, text)
        };
        let prompts: Vec<_> = setting.prompts.iter().map(prompt).collect::<Result<_>>()?;
        setting.prompt_ids = prompts.iter().map(|prompt| prompt.ids.clone()).collect();
        if let Some(prompt) = prompts.first() {
            setting.images = prompt.records();
            setting.pan_and_scan = self.images.pan_and_scan;
        }
        Ok(prompts)
    }
}
