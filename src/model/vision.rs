//! The vision part: a tower of the same blocks as the text model's, whose tokens all see each other, and what makes tokens of
//! the text model of its output.

use super::build::Weights;
use super::error::{Error, Result};
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
fn position_embedding() -> String {
    format!("{}.position_embedding", VisionConfig::EMBEDDINGS)
}

/// The vision part of a model, whose weights stay as they are stored.
#[derive(Clone, Debug)]
pub struct Vision<'m> {
    model: &'m Model,
    config: VisionConfig,
    /// The convolution, as a map of a patch's numbers in the order of its weight: `[hidden, 3 · patch_size²]`.
    patches: Linear,
    /// The learned positions `[patches, hidden]`.
    positions: Tensor,
    blocks: Vec<Block>,
    post_norm: Norm,
    soft_norm: Norm,
    /// The text model's hidden size from the tower's.
    projection: Linear,
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
        Ok(Vision {
            model: self,
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
        })
    }
}

impl Vision<'_> {
    /// Its shape, and which tokens stand for an image.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// What takes the place of embeddings at the tokens of some images, `[images · mm_tokens_per_image, hidden]`, from the
    /// `[3, image_size, image_size]` pixels of each. It is computed on the CPU, wherever the text model is.
    ///
    /// # Errors
    ///
    /// [`Error::PixelValues`]; [`NotFinite`](crate::checkpoint::Error::NotFinite) and [`Error::Overflow`] where a number is not
    /// finite.
    pub fn features<E: Element>(
        &self,
        pixel_values: &[&[f32]],
        recorder: Option<&mut dyn Recorder>,
    ) -> Result<Matrix<E>> {
        let mut run = ForwardRun::of_vision(self.model, recorder);
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
        let pixels = pixels.iter().map(|&x| E::from_f32(x)).collect();
        let pixels = Matrix::from_vec(config.image_size, pixels);
        run.record_global(PIXEL_VALUES, &pixels);
        let patches = self.patches(&pixels);
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

    /// The numbers of each patch, `[patches, 3 · patch_size²]`, from `[3 · image_size, image_size]`: patches row by row, and in
    /// each the colours one after the other, row by row.
    fn patches<E: Element>(&self, pixels: &Matrix<E>) -> Matrix<E> {
        let (size, patch) = (self.config.image_size, self.config.patch_size);
        let side = self.config.patches_per_side();
        let mut numbers = Vec::with_capacity(side * side * 3 * patch * patch);
        for (i, j) in (0..side).flat_map(|i| (0..side).map(move |j| (i, j))) {
            let columns = j * patch..(j + 1) * patch;
            for row in (0..3).flat_map(|colour| (0..patch).map(move |row| colour * size + row)) {
                numbers.extend_from_slice(&pixels.row(row + i * patch)[columns.clone()]);
            }
        }
        Matrix::from_vec(3 * patch * patch, numbers)
    }

    /// What goes into the first block: the patches mapped, and their positions added.
    pub(crate) fn embed<O: Ops>(
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
    pub(crate) fn normed<O: Ops>(&self, ops: &mut O, x: &O::Rows) -> O::Rows {
        let x = ops.norm(&self.post_norm, x);
        ops.record_global(self.post_norm.name(), &x);
        x
    }

    /// The mean of each square of patches, `[mm_tokens_per_image, hidden]`: summed row by row in the type of sums, divided,
    /// and rounded once.
    fn pooled<E: Element>(&self, x: &Matrix<E>) -> Matrix<E> {
        let (side, pool) = (self.config.patches_per_side(), self.config.pool());
        let tokens = side / pool;
        let count = E::Acc::from_f64((pool * pool) as f64);
        let mut out = Matrix::zeros(tokens * tokens, x.cols());
        let mut sums = vec![E::Acc::ZERO; x.cols()];
        for (token, out) in out.iter_rows_mut().enumerate() {
            let (i, j) = (token / tokens * pool, token % tokens * pool);
            sums.fill(E::Acc::ZERO);
            for (row, col) in (0..pool).flat_map(|row| (0..pool).map(move |col| (row, col))) {
                let patch = x.row((i + row) * side + j + col);
                for (sum, x) in sums.iter_mut().zip(patch) {
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
    pub(crate) fn project<O: Ops>(&self, ops: &mut O, pooled: &O::Rows) -> O::Rows {
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
