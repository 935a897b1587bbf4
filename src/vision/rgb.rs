//! The pixels of a picture.

/// RGB, 8 bits a channel, row by row: `[height, width, 3]`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Rgb {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) bytes: Vec<u8>,
}

impl Rgb {
    pub(super) fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = 3 * (y * self.width + x);
        [self.bytes[at], self.bytes[at + 1], self.bytes[at + 2]]
    }
}
