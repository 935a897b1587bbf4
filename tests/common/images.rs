//! The prompts with images of the golden data.

use context_patch::model::{Images, Inputs, Recorder, Tokens};
use context_patch::tensor::{Element, Matrix};
use context_patch::{Model, Session};

use super::Golden;

/// The random checkpoints that see, in three spellings of their tensors' names: one with a window shorter than an image, one
/// that pools nothing, and one whose patches do not fill an image nor its tokens the patches.
pub const SEEING: [&str; 3] = ["vision-window", "vision-no-pooling", "vision-odd-sizes"];

/// An image early or late, three of them, two that follow one another without a token between, and one before all text.
pub const PROMPTS: [&str; 5] = ["start", "middle", "several", "adjacent", "first"];

/// Every committed model that sees, the trained one among them: its directory, the name of its golden data, and their prompts.
pub fn all_seeing() -> Vec<(String, &'static str, &'static [&'static str])> {
    let random = SEEING.map(|name| (format!("checkpoints/{name}"), name, PROMPTS.as_slice()));
    let tiny = (
        "tiny-vision".to_owned(),
        "tiny-vision",
        ["example"].as_slice(),
    );
    random.into_iter().chain([tiny]).collect()
}

/// The images of a model's golden data.
pub struct Pixels(Vec<Vec<f32>>);

impl Pixels {
    pub fn of(golden: &Golden, model: &Model) -> Self {
        let all = golden.get("pixel_values");
        let each = all.chunks_exact(model.vision().unwrap().config().pixels());
        Self(
            each.map(|x| x.iter().map(|&x| x as f32).collect())
                .collect(),
        )
    }

    pub fn all(&self) -> Vec<&[f32]> {
        self.0.iter().map(Vec::as_slice).collect()
    }
}

/// A prompt with images.
pub struct Prompt<'a> {
    pub ids: Vec<u32>,
    pub pixel_values: Vec<&'a [f32]>,
}

impl<'a> Prompt<'a> {
    pub fn of(golden: &Golden, name: &str, pixels: &'a Pixels) -> Self {
        let whole = |what: &str| golden.get(&format!("{name}.{what}")).into_iter();
        Self {
            ids: whole("ids").map(|id| id as u32).collect(),
            pixel_values: whole("images").map(|i| pixels.all()[i as usize]).collect(),
        }
    }

    pub fn inputs(&self) -> Inputs<'_> {
        Inputs {
            ids: &self.ids,
            pixel_values: &self.pixel_values,
        }
    }

    pub fn images<E: Element>(&self, model: &Model) -> Images<E> {
        Images::of(model, self.inputs()).unwrap().unwrap()
    }

    /// The logits of all tokens, `[tokens, vocab]`.
    pub fn logits<E: Element>(&self, model: &Model) -> Matrix<f64> {
        let images = self.images::<E>(model);
        let tokens = Tokens::new(&self.ids, Some(&images));
        let logits = Session::new(model).forward(tokens, self.ids.len());
        logits.unwrap().map(E::to_f64)
    }

    /// A session that has taken in everything but the last token.
    pub fn contextual<'m, E: Element>(&self, model: &'m Model) -> Session<'m, E> {
        let images = self.images::<E>(model);
        let mut session = Session::new(model);
        let context = &self.ids[..self.ids.len() - 1];
        let nothing = session.forward(Tokens::new(context, Some(&images)), 0);
        assert_eq!(nothing.unwrap().rows(), 0);
        session
    }
}

/// What the modules of some names give.
pub struct Modules<const N: usize> {
    pub names: [&'static str; N],
    pub numbers: [Vec<f64>; N],
}

impl<const N: usize> Modules<N> {
    pub fn new(names: [&'static str; N]) -> Self {
        Self {
            names,
            numbers: [const { Vec::new() }; N],
        }
    }
}

impl<const N: usize> Recorder for Modules<N> {
    fn wants(&self, name: &str) -> bool {
        self.names.contains(&name)
    }

    fn record(&mut self, name: &str, rows: &Matrix<f64>) {
        let at = self.names.iter().position(|known| *known == name);
        self.numbers[at.unwrap()].extend(rows.as_slice());
    }
}
