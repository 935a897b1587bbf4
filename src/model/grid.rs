//! How an image is cut into patches, and which of them become one token.

use crate::checkpoint::VisionConfig;
use crate::tensor::{Element, Matrix};

/// The patches of an image, row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    /// Pixels of an image's side, and of a patch's.
    image: usize,
    patch: usize,
    /// Patches of an image's side, and of a side of what becomes one token.
    side: usize,
    pool: usize,
}

impl Grid {
    pub(super) fn new(config: &VisionConfig) -> Self {
        Self {
            image: config.image_size,
            patch: config.patch_size,
            side: config.patches_per_side(),
            pool: config.pool(),
        }
    }

    /// The patches of an image.
    pub(crate) fn patches(self) -> usize {
        self.side * self.side
    }

    /// The numbers of each patch, `[patches, 3 · patch_size²]`, from `[3 · image_size, image_size]`: in each the colours one
    /// after the other, row by row.
    pub(crate) fn cut<E: Element>(self, pixels: &Matrix<E>) -> Matrix<E> {
        let Self {
            image, patch, side, ..
        } = self;
        let mut numbers = Vec::with_capacity(self.patches() * 3 * patch * patch);
        for (i, j) in (0..side).flat_map(|i| (0..side).map(move |j| (i, j))) {
            let columns = j * patch..(j + 1) * patch;
            for row in (0..3).flat_map(|colour| (0..patch).map(move |row| colour * image + row)) {
                numbers.extend_from_slice(&pixels.row(row + i * patch)[columns.clone()]);
            }
        }
        Matrix::from_vec(3 * patch * patch, numbers)
    }

    /// The tokens of an image.
    pub(crate) fn tokens(self) -> usize {
        (self.side / self.pool).pow(2)
    }

    /// The patches whose mean is one of an image's tokens, row by row.
    pub(crate) fn pooled(self, token: usize) -> impl Iterator<Item = usize> + Clone {
        let Self { side, pool, .. } = self;
        let tokens = side / pool;
        let (i, j) = (token / tokens * pool, token % tokens * pool);
        let places = (0..pool).flat_map(move |row| (0..pool).map(move |col| (row, col)));
        places.map(move |(row, col)| (i + row) * side + j + col)
    }
}
