//! The types that numbers are stored in.

use std::fmt;

use super::Dtype;

/// The type of the numbers in a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// ggml's 4 bits: a scale for 32 numbers.
    Q4_0,
    /// ggml's 4 bits: a scale and a minimum for 32 numbers.
    Q4_1,
    /// ggml's 5 bits: a scale for 32 numbers.
    Q5_0,
    /// ggml's 5 bits: a scale and a minimum for 32 numbers.
    Q5_1,
    /// ggml's 8 bits: a scale for 32 numbers.
    Q8_0,
    /// ggml's 2 bits: scales and minima in 4 bits, in blocks of 256.
    Q2K,
    /// ggml's 3 bits: scales in 6 bits, in blocks of 256.
    Q3K,
    /// ggml's 4 bits: scales and minima in 6 bits, in blocks of 256.
    Q4K,
    /// ggml's 5 bits: scales and minima in 6 bits, in blocks of 256.
    Q5K,
    /// ggml's 6 bits: scales in 8 bits, in blocks of 256.
    Q6K,
    /// ggml's 16 unequal steps: a scale for 32 numbers.
    Iq4Nl,
    /// The same steps with scales in 6 bits, in blocks of 256.
    Iq4Xs,
}

/// The least that a type stores: a number, or the numbers of a quantised type that have their scales together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// How many numbers it has; rows are whole blocks.
    pub numbers: usize,
    /// How many bytes it takes.
    pub bytes: usize,
}

impl Storage {
    /// All of ggml's quantised types.
    pub const QUANTISED: [Self; 12] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
    ];

    /// Its block.
    pub const fn block(self) -> Block {
        let (numbers, bytes) = match self {
            Self::F64 => (1, 8),
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 | Self::Iq4Nl => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Iq4Xs => (256, 136),
        };
        Block { numbers, bytes }
    }

    /// The bytes of so many numbers: `None` where they are no whole blocks, or too many to count their bytes.
    pub fn bytes_of(self, numbers: usize) -> Option<usize> {
        let block = self.block();
        let whole = numbers.is_multiple_of(block.numbers);
        whole.then(|| (numbers / block.numbers).checked_mul(block.bytes))?
    }

    /// Whether it is one of ggml's quantised types.
    pub const fn is_quantised(self) -> bool {
        self.block().numbers > 1
    }

    /// What new numbers in the place of some of this type are stored as unless it is asked for: this type, or F32 for a quantised one.
    #[must_use]
    pub const fn for_new_numbers(self) -> Self {
        if self.is_quantised() { Self::F32 } else { self }
    }
}

impl From<Dtype> for Storage {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

impl fmt::Display for Storage {
    /// The name that safetensors uses, or ggml for a quantised type.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Iq4Nl => "IQ4_NL",
            Self::Iq4Xs => "IQ4_XS",
        })
    }
}
