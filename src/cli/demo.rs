//! `context-patch demo`.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use context_patch::Result;
use context_patch::checkpoint::Tokenizer;
use context_patch::kernels::Level;
use context_patch::model::generate::likeliest;
use context_patch::model::{Images, Inputs, Model, ModelOptions, Session, Tokens};
use context_patch::output::{check_writable, write_file};
use context_patch::patch::{self, Method, Query, Solution, Solver, Variant, solve};
use context_patch::report::{Answer, chance, picture};
use context_patch::tensor::{Dtype, Element};
use context_patch::verify::{LogitsDistance, distribution};
use context_patch::vision::{Picture, Processor, half_blocks};
use serde_json::{Value, json};

use super::table::table;
use super::words::{figure, paragraph, rows};
use super::{OK, builtin, print, program, refuse_empty, with_dtype};

/// See a context absorbed into weights, by a small model that is built in
///
/// The model has learnt to recall: it answers from the context who likes what. It is asked with the context, without it,
/// and without it but with its weights patched (Theorem 1). With --picture another model is asked about a picture.
#[derive(Args)]
#[command(before_help = "\
Examples:
  context-patch demo
  context-patch demo --picture
  context-patch demo --context 'Ida has bells.' --question 'Ida has'
  context-patch demo --svg demo.svg")]
pub(super) struct Demo {
    /// What the model is told
    #[arg(long, default_value = CONTEXT, allow_hyphen_values = true, conflicts_with = "picture")]
    context: String,

    /// What it is asked; its last token is the one the patch is for [default: "Bob likes", or of a picture "What colour is
    /// the circle?"]
    #[arg(long, allow_hyphen_values = true)]
    question: Option<String>,

    /// Let a model that has learnt to see coloured shapes look at a picture, one that is built in or FILE, and absorb that
    #[arg(long, value_name = "FILE")]
    picture: Option<Option<PathBuf>>,

    /// Compute in f64, f32 or bf16
    #[arg(long, default_value_t = Dtype::F32)]
    dtype: Dtype,

    /// Draw the answers as a picture, too
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Print one JSON object with every figure instead
    #[arg(long)]
    json: bool,
}

const CONTEXT: &str = "Ann likes plums. Bob likes figs.";
const QUESTION: &str = "Bob likes";
const QUESTION_OF_A_PICTURE: &str = "What colour is the circle?";

/// How wide the picture is in a terminal.
const PICTURE_COLUMNS: usize = 32;

/// How many words are drawn of each answer.
const DRAWN: usize = 5;

impl Default for Demo {
    fn default() -> Self {
        Self {
            context: CONTEXT.into(),
            question: None,
            picture: None,
            dtype: Dtype::F32,
            svg: None,
            json: false,
        }
    }
}

impl Demo {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        if let Some(file) = &self.svg {
            check_writable(file)?;
        }
        let options = ModelOptions {
            level,
            ..ModelOptions::default()
        };
        let asked = match &self.picture {
            None => self.told(options)?,
            Some(file) => self.shown(file.as_deref(), options)?,
        };
        with_dtype!(self.dtype, E => {
            let solution = asked.absorb::<E>()?;
            self.say(&asked, &solution)?;
        });
        Ok(OK)
    }

    fn question(&self) -> &str {
        let default = match self.picture {
            None => QUESTION,
            Some(_) => QUESTION_OF_A_PICTURE,
        };
        self.question.as_deref().unwrap_or(default)
    }

    /// The question after the context.
    fn told(&self, options: ModelOptions) -> Result<Asked> {
        let model = builtin::tiny(options)?;
        let tokenizer = model.checkpoint().tokenizer()?;
        refuse_empty(self.question())?;
        let context = tokenizer.encode(&self.context)?;
        let ids = tokenizer.encode(&format!("{} {}", self.context, self.question()))?;
        if context.len() <= 1 || !ids.starts_with(&context) || ids.len() == context.len() {
            return Err(patch::Error::NoContext.into());
        }
        Ok(Asked {
            model,
            tokenizer,
            ids,
            context: context.len(),
            picture: None,
            pixel_values: Vec::new(),
        })
    }

    /// The question after a picture, in the form that the model has learnt.
    fn shown(&self, file: Option<&Path>, options: ModelOptions) -> Result<Asked> {
        let model = builtin::tiny_vision(options)?;
        let tokenizer = model.checkpoint().tokenizer()?;
        refuse_empty(self.question())?;
        let picture = match file {
            Some(file) => Picture::open(file)?,
            None => Picture::decode(Path::new("the picture that is built in"), builtin::PICTURE)?,
        };
        let processor = Processor::of(model.checkpoint())?;
        let place = processor.placeholder(&tokenizer)?;
        let pictures = [picture];
        let encode = |text: &str| -> Result<_> {
            Ok(tokenizer.encode(&processor.expand(&tokenizer, text, &pictures)?)?)
        };
        let ids = encode(&format!("{place}{}\nA:", self.question()))?;
        let images = processor.pixel_values(&ids, &pictures)?;
        let image = model.checkpoint().vision_config()?.image_token_index;
        let last = ids.iter().rposition(|id| *id == image);
        let [picture] = pictures;
        Ok(Asked {
            model,
            tokenizer,
            // The token behind the picture's says that it ends.
            context: last.map_or(0, |last| last + 2),
            ids,
            picture: Some(picture),
            pixel_values: images.into_iter().map(|image| image.values).collect(),
        })
    }

    fn say<E: Element>(&self, asked: &Asked, solution: &Solution<E>) -> Result<()> {
        let answers = self.answers(&asked.tokenizer, solution);
        if let Some(file) = &self.svg {
            let svg = picture(&answers);
            write_file(file, |out| out.write_all(svg.as_bytes()))?;
        }
        if self.json {
            return print(&format!("{}\n", self.json(&answers, solution)));
        }
        if let Some(picture) = &asked.picture
            && std::io::stdout().is_terminal()
        {
            print(&half_blocks(picture, PICTURE_COLUMNS))?;
        }
        print(&self.text(asked, &answers, solution))
    }

    /// What is said with the context, without it, and without it but patched.
    fn answers<E: Element>(&self, tokenizer: &Tokenizer, solution: &Solution<E>) -> [Answer; 3] {
        let answer = |title: &str, context: &str, logits: &[E]| {
            let p = distribution(logits);
            let words = likeliest(logits, DRAWN).into_iter().map(|id| {
                let word = tokenizer.decode(&[id]).unwrap_or_default();
                (word.trim().to_owned(), p[id as usize])
            });
            Answer {
                title: title.into(),
                reads: [context.into(), format!("{} …", self.question())],
                words: words.collect(),
            }
        };
        let (context, told) = match self.picture {
            None => ("context", self.context.as_str()),
            Some(_) => ("picture", "(a picture)"),
        };
        let with = format!("with the {context}");
        let (without, patched) = (
            format!("(no {context})"),
            format!("(the {context} is in the weights)"),
        );
        [
            answer(&with, told, &solution.contextual),
            answer("without it", &without, solution.reduced.row(1)),
            answer("without it, patched", &patched, solution.reduced.row(0)),
        ]
    }

    fn text<E: Element>(
        &self,
        asked: &Asked,
        answers: &[Answer],
        solution: &Solution<E>,
    ) -> String {
        let lines = answers.iter().map(|answer| {
            let likeliest = answer.words.first().cloned();
            let (word, p) = likeliest.unwrap_or_default();
            vec![answer.title.clone(), word, chance(p), bar(p)]
        });
        let lines: Vec<_> = lines.collect();
        let header = ["", "next word", "", ""];
        let [patched, unpatched] = distances(solution).map(|distance| figure(distance.linf));
        format!(
            "{}\n{}\n{}\n{}",
            rows([
                match &asked.picture {
                    None => ("context", self.context.clone()),
                    Some(picture) => ("picture", described(picture)),
                },
                ("question", format!("{} …", self.question())),
            ]),
            table(4, &header, &lines),
            paragraph(&format!(
                "The patched model does not see the {}, and answers as if it did: its {} logits differ from those of \
                 the model that sees it by {patched} at most; without the patch, by up to {unpatched}.",
                if asked.picture.is_some() {
                    "picture"
                } else {
                    "context"
                },
                solution.contextual.len(),
            )),
            match &self.svg {
                Some(file) => rows([("Drawn", file.display().to_string())]),
                None => rows([("Next", format!("{} patch --help", program()))]),
            },
        )
    }

    fn json<E: Element>(&self, answers: &[Answer], solution: &Solution<E>) -> Value {
        let [patched, unpatched] = distances(solution);
        let answers = answers.iter().map(|answer| {
            let words = answer.words.iter();
            let words = words.map(|(word, p)| json!({ "word": word, "p": p }));
            json!({ "how": answer.title, "words": words.collect::<Vec<_>>() })
        });
        json!({
            "context": self.picture.is_none().then_some(&self.context),
            "picture": self.picture,
            "question": self.question(),
            "dtype": self.dtype.to_string(),
            "answers": answers.collect::<Vec<_>>(),
            "patched": patched,
            "unpatched": unpatched,
            "report": solution.report,
        })
    }
}

/// The patched logits and the unpatched ones against those with the context.
fn distances<E: Element>(solution: &Solution<E>) -> [LogitsDistance; 2] {
    [0, 1].map(|row| LogitsDistance::new(solution.reduced.row(row), &solution.contextual))
}

/// A probability as a bar.
fn bar(p: f64) -> String {
    match (30.0 * p).round() as usize {
        0 => "▏".into(),
        length => "█".repeat(length),
    }
}

/// A picture in words.
fn described(picture: &Picture) -> String {
    let (width, height) = (picture.width(), picture.height());
    format!("{}, {width} × {height} pixels", picture.path().display())
}

/// A model, and what it is asked.
struct Asked {
    model: Model,
    tokenizer: Tokenizer,
    /// The context, and behind it the question.
    ids: Vec<u32>,
    /// How many of them are the context.
    context: usize,
    picture: Option<Picture>,
    /// What the model reads of the picture.
    pixel_values: Vec<Vec<f32>>,
}

impl Asked {
    /// Everything but the first token (which marks the beginning) and the question is absorbed.
    fn absorb<E: Element>(&self) -> Result<Solution<E>> {
        let (ids, question) = (&self.ids, self.ids.len() - 1);
        let pixel_values: Vec<_> = self.pixel_values.iter().map(Vec::as_slice).collect();
        let inputs = Inputs {
            ids,
            pixel_values: &pixel_values,
        };
        let images = Images::<E>::of(&self.model, inputs)?;
        let mut contextual = Session::<E>::new(&self.model);
        contextual.forward(Tokens::new(&ids[..question], images.as_ref()), 0)?;
        let stays = std::iter::once(0).chain(self.context..question);
        let kept: Vec<_> = stays.map(|position| (ids[position], position)).collect();
        let query = Query {
            kept: &kept,
            ..Query::alone(ids[question])
        };
        let method = Method::new(Solver::Theorem1);
        Ok(solve(&mut contextual, query, &method, &[Variant::NoPatch])?)
    }
}
