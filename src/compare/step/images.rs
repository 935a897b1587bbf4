//! What images become on their way into the text model, but for what they have in common with a text.

use super::Step;
use crate::compare::interval::Interval;
use crate::model::Grid;
use crate::tensor::Dtype;

impl Step<'_> {
    /// Pixels as the reference has them. They come of a difference and a quotient in f32, which are off by 4 u in the units of
    /// the deviation, and of a level that was rounded; in bf16 they may be recorded before they are rounded or after.
    pub(super) fn pixels(&self, row: usize) -> Vec<Interval> {
        let config = self.run.model.checkpoint().image_processor();
        let config = config.ok().flatten().unwrap_or_default();
        let means = config.image_mean.iter().zip(config.image_std);
        let level = means.fold(0.0, |most: f64, (mean, std)| most.max((mean / std).abs()));
        let each = self.run.images.row(row).iter().map(|&x| {
            let x = f64::from(x);
            let off = 4.0 * Dtype::F32.unit_roundoff() * (x.abs() + level);
            let x = Interval::around(x, off);
            let rounded = x.map(|x| self.rounding.nearest(x));
            Interval {
                low: x.low.min(rounded.low),
                value: x.value,
                high: x.high.max(rounded.high),
            }
        });
        each.collect()
    }

    /// The mean of patches, summed in whatever order.
    pub(super) fn pool(&self, grid: Grid, row: usize) -> Vec<Interval> {
        let patches: Vec<_> = self
            .pooled(grid, row)
            .map(|patch| self.row(0, patch))
            .collect();
        let (unit, walk) = (self.rounding.unit(), self.rounding.walk(patches.len()));
        let count = patches.len() as f64;
        let columns = 0..patches[0].len();
        let means = columns.map(|column| {
            let terms = patches.iter().map(|patch| patch[column]);
            let sizes: f64 = terms.clone().map(Interval::size).sum();
            let sum = terms.fold(Interval::exactly(0.0), Interval::plus);
            let mean = sum.off(walk * sizes).map(|sum| sum / count);
            self.rounding.of(mean.off(unit * mean.size()))
        });
        means.collect()
    }

    /// The rows of the patches that become a row.
    pub(super) fn pooled(&self, grid: Grid, row: usize) -> impl Iterator<Item = usize> {
        let (image, token) = (row / grid.tokens(), row % grid.tokens());
        grid.pooled(token)
            .map(move |patch| image * grid.patches() + patch)
    }

    /// What goes into the first block for a token: its embedding, or what an image puts in its place.
    pub(super) fn put_images(&self, row: usize) -> Vec<Interval> {
        let (input, row) = self.put(row);
        let x = self.row(input, row);
        let factor = self.run.model.features_factor(self.rounding.0.pass());
        if input == 0 || factor == 1.0 {
            return x;
        }
        let scaled = x.into_iter().map(|x| x.times(Interval::exactly(factor)));
        scaled.map(|x| self.rounding.once(x)).collect()
    }

    /// Which input a row of the first block comes from, and which row of that.
    pub(super) fn put(&self, row: usize) -> (usize, usize) {
        let token = self.run.first + row;
        let before = self.run.spans.iter().map(|span| {
            let end = token.clamp(span.start, span.end);
            end - span.start
        });
        let inside = self.run.spans.iter().any(|span| span.contains(&token));
        if inside { (1, before.sum()) } else { (0, row) }
    }
}
