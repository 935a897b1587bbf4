//! The vision part: a tower of the same blocks as the text model's, whose tokens all see each other, and what makes tokens of
//! the text model of its output.

use super::build::Weights;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::error::{Error, Result};
use super::grid::Grid;
use super::load::{Loader, refuse_extra_layers};
use super::ops::Ops;
use super::pass::{Pass, Sequence};
use super::run::ForwardRun;
use super::{Block, Cache, Linear, Model, Norm, Recorder};
use crate::checkpoint::VisionConfig;
use crate::checkpoint::form::LinearForm;
use crate::tensor::{Element, Float, Matrix, Tensor};

/// What goes into the tower, in recordings.
pub(crate) const PIXEL_VALUES: &str = "pixel_values";

/// The module of the learned positions.
pub(super) fn position_embedding() -> String {
    format!("{}.position_embedding", VisionConfig::EMBEDDINGS)
}

/// The vision part of a model, whose weights stay as they are stored.
#[derive(Clone, Debug)]
pub struct Vision<'m> {
    model: &'m Model,
    config: VisionConfig,
    pub(super) grid: Grid,
    /// The convolution, as a map of a patch's numbers in the order of its weight: `[hidden, 3 · patch_size²]`.
    patches: Linear,
    /// The learned positions `[patches, hidden]`.
    pub(super) positions: Tensor,
    pub(super) blocks: Vec<Block>,
    pub(super) post_norm: Norm,
    pub(super) soft_norm: Norm,
    /// The text model's hidden size from the tower's.
    projection: Linear,
    cancel: Option<Arc<AtomicBool>>,
    /// The seed of random errors in matrix products.
    disturbed: Option<u64>,
}

impl Model {
    /// The vision part. It is looked for when it is asked for: a text needs none.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::vision_config`](crate::Checkpoint::vision_config), and
    /// [`checkpoint::Error`](crate::checkpoint::Error)'s `MissingTensor`, `TensorShape` and `ExtraLayer`.
    pub fn vision(&self) -> Result<Vision<'_>> {
        let config = self.checkpoint().vision_config()?;
        let tensors = self.checkpoint().tensors();
        let layers = config.num_hidden_layers;
        refuse_extra_layers(
            tensors,
            tensors.vision_names(),
            VisionConfig::LAYERS,
            layers,
        )?;
        let (hidden, patch) = (config.hidden_size, config.patch_size);
        let mut loader = Loader::vision(self, String::new());
        let module = format!("{}.patch_embedding", VisionConfig::EMBEDDINGS);
        let patches = Linear {
            weight: loader
                .tensor(&format!("{module}.weight"), &[hidden, 3, patch, patch])?
                .with_long_rows(),
            bias: Some(loader.tensor(&format!("{module}.bias"), &[hidden])?),
            form: LinearForm::new(module).biased(true),
        };
        let positions = format!("{}.weight", position_embedding());
        let count = config.patches_per_side().pow(2);
        let weight = format!("{}.mm_input_projection_weight", VisionConfig::PROJECTOR);
        let weight = loader.tensor(&weight, &[hidden, self.config().hidden_size])?;
        let blocks = (0..layers).map(|layer| {
            let prefix = format!("{}.{layer}.", VisionConfig::LAYERS);
            Block::build(&config.block, hidden, &mut Loader::vision(self, prefix))
        });
        let vision = Vision {
            model: self,
            grid: Grid::new(&config),
            patches,
            positions: loader.tensor(&positions, &[count, hidden])?,
            blocks: blocks.collect::<Result<_>>()?,
            post_norm: loader.norm(&config.post_norm, hidden)?,
            soft_norm: loader.norm(&config.soft_norm, hidden)?,
            projection: Linear {
                weight: weight.transposed(),
                bias: None,
                form: LinearForm::new(VisionConfig::PROJECTOR),
            },
            config,
            cancel: None,
            disturbed: None,
        };
        Ok(vision.with_bug(self.bug))
    }
}

impl Vision<'_> {
    /// Its shape, and which tokens stand for an image.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// The tower's blocks in order.
    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Lets `cancel` end a pass: the flag is read before every layer of every image.
    #[must_use]
    pub fn with_cancel(mut self, cancel: Arc<AtomicBool>) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// [Disturbs](ForwardRun::disturbed) the passes.
    pub(crate) fn disturbed(self, seed: Option<u64>) -> Self {
        Self {
            disturbed: seed,
            ..self
        }
    }

    /// What takes the place of embeddings at the tokens of some images, `[images · mm_tokens_per_image, hidden]`, from the
    /// `[3, image_size, image_size]` pixels of each. It is computed on the CPU, wherever the text model is.
    ///
    /// # Errors
    ///
    /// [`Error::PixelValues`]; [`Error::Cancelled`]; [`NotFinite`](crate::checkpoint::Error::NotFinite) and [`Error::Overflow`] where a number is not
    /// finite.
    pub fn features<E: Element>(
        &self,
        pixel_values: &[&[f32]],
        recorder: Option<&mut dyn Recorder>,
    ) -> Result<Matrix<E>> {
        let run = ForwardRun::of_vision(self.model, recorder, self.cancel.clone());
        let mut run = match self.disturbed {
            None => run,
            Some(seed) => run.disturbed(seed),
        };
        let positions = Matrix::from_vec(self.config.hidden_size, self.positions.to_vec());
        let each = pixel_values.iter().enumerate().map(|(i, pixels)| {
            if i == 0 {
                // Those of all images, as in transformers.
                run.record_global(&position_embedding(), &positions);
            }
            self.image(&mut run, pixels, &positions)
        });
        let each = each.collect::<Result<_>>()?;
        Ok(Matrix::stack(self.model.config().hidden_size, each))
    }

    /// The tokens of one image.
    fn image<E: Element>(
        &self,
        run: &mut ForwardRun<'_>,
        pixels: &[f32],
        positions: &Matrix<E>,
    ) -> Result<Matrix<E>> {
        let config = &self.config;
        if pixels.len() != config.pixels() {
            return Err(Error::PixelValues {
                found: pixels.len(),
                size: config.image_size,
            });
        }
        let pixels = Matrix::from_slice(config.image_size, pixels);
        // Before they are rounded to the compute type, as transformers takes them in.
        run.record_global(PIXEL_VALUES, &pixels);
        let patches = self.grid.cut(&pixels.map(E::from_f32));
        let mut x = self.embed(&mut Pass::of_rows(run, &[]), &patches, positions);
        let places: Vec<_> = (0..x.rows()).collect();
        let form = &config.block.attention;
        for (layer, block) in self.blocks.iter().enumerate() {
            run.enter(layer)?;
            // Of this layer alone, the ones before it left empty.
            let mut cache = Cache::new(vec![None; layer + 1], form.kv_heads, form.head_dim);
            cache.see_together(std::slice::from_ref(&(0..x.rows())));
            let mut sequences = [Sequence {
                rows: 0..x.rows(),
                positions: &places,
                cache: &mut cache,
            }];
            x = block.forward(&mut Pass::new(run, &mut sequences, &[]), x);
            self.check_finite(&x, || format!("{}.{layer}", VisionConfig::LAYERS))?;
        }
        let mut pass = Pass::of_rows(run, &[]);
        let x = self.normed(&mut pass, &x);
        let pooled = self.pooled(&x);
        let tokens = self.project(&mut pass, &pooled);
        self.check_finite(&tokens, || VisionConfig::PROJECTOR.into())?;
        Ok(tokens)
    }

    /// What goes into the first block: the patches mapped, and their positions added.
    pub(super) fn embed<O: Ops>(
        &self,
        ops: &mut O,
        patches: &O::Rows,
        positions: &O::Rows,
    ) -> O::Rows {
        let [x] = ops.linear([&self.patches], patches);
        ops.record_global(self.patches.name(), &x);
        let x = ops.add(&x, positions);
        ops.record_global(VisionConfig::EMBEDDINGS, &x);
        x
    }

    /// The norm behind the last block.
    pub(super) fn normed<O: Ops>(&self, ops: &mut O, x: &O::Rows) -> O::Rows {
        let x = ops.norm(&self.post_norm, x);
        ops.record_global(self.post_norm.name(), &x);
        x
    }

    /// The mean of each square of patches, `[mm_tokens_per_image, hidden]`: summed row by row in the type of sums, divided,
    /// and rounded once.
    fn pooled<E: Element>(&self, x: &Matrix<E>) -> Matrix<E> {
        let count = E::Acc::from_f64(self.grid.pooled(0).count() as f64);
        let mut out = Matrix::zeros(self.grid.tokens(), x.cols());
        let mut sums = vec![E::Acc::ZERO; x.cols()];
        for (token, out) in out.iter_rows_mut().enumerate() {
            sums.fill(E::Acc::ZERO);
            for patch in self.grid.pooled(token) {
                for (sum, x) in sums.iter_mut().zip(x.row(patch)) {
                    *sum = *sum + x.acc();
                }
            }
            for (out, &sum) in out.iter_mut().zip(&sums) {
                *out = E::round(sum / count);
            }
        }
        out
    }

    /// The pooled patches as tokens of the text model.
    pub(super) fn project<O: Ops>(&self, ops: &mut O, pooled: &O::Rows) -> O::Rows {
        ops.record_global(&format!("{}.avg_pool", VisionConfig::PROJECTOR), pooled);
        let x = ops.norm(&self.soft_norm, pooled);
        ops.record_global(self.soft_norm.name(), &x);
        let [x] = ops.linear([&self.projection], &x);
        ops.record_global(self.projection.name(), &x);
        x
    }

    /// Refuses infinities and NaN in a module's output.
    fn check_finite<E: Element>(&self, x: &Matrix<E>, module: impl Fn() -> String) -> Result<()> {
        if x.is_finite() {
            return Ok(());
        }
        self.model.checkpoint().tensors().check_vision_finite()?;
        Err(Error::Overflow {
            module: module(),
            dtype: E::DTYPE,
        })
    }
}
