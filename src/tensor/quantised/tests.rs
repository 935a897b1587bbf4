use bytes::Bytes;
use half::{bf16, f16};

use super::*;
use crate::tensor::Tensor;

/// Where a block has its f16 factors.
fn factors(storage: Storage) -> &'static [usize] {
    match storage {
        Storage::Q4_1 | Storage::Q5_1 | Storage::Q4K | Storage::Q5K => &[0, 2],
        Storage::Q2K => &[80, 82],
        Storage::Q3K => &[108],
        Storage::Q6K => &[208],
        _ => &[0],
    }
}

/// Blocks of random bits, whose factors are finite.
pub(crate) fn blocks(storage: Storage, count: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut random = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 48) as u16
    };
    let size = storage.block().bytes;
    let mut bytes: Vec<u8> = (0..count * size).map(|_| random() as u8).collect();
    for (i, block) in bytes.chunks_exact_mut(size).enumerate() {
        for (n, &at) in factors(storage).iter().enumerate() {
            // The first goes through all f16, far apart.
            let mut factor = if n == 0 { (257 * i) as u16 } else { random() };
            if factor & 0x7c00 == 0x7c00 {
                factor &= 0x83ff;
            }
            block[at..at + 2].copy_from_slice(&factor.to_le_bytes());
        }
    }
    bytes
}

/// An f16 in units of 2⁻²⁴, of which all are multiples.
fn units(block: &[u8], at: usize) -> i64 {
    let x = f16::from_le_bytes([block[at], block[at + 1]]);
    (x.to_f64() * f64::from(1 << 24)) as i64
}

/// `count` bits from bit `first` of `bytes` on.
fn field(bytes: &[u8], first: usize, count: usize) -> i64 {
    let bit = |i: usize| i64::from(bytes[i / 8] >> (i % 8) & 1);
    (0..count).map(|i| bit(first + i) << i).sum()
}

/// Number `i` of a block in units of 2⁻²⁴, bit by bit from ggml's description of its types.
fn exactly(storage: Storage, block: &[u8], i: usize) -> i64 {
    const STEPS: [i64; 16] = [
        -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
    ];
    // Of 32 numbers the first 16 are low nibbles.
    let nibble = |at: usize, i: usize| field(block, 8 * (at + i % 16) + 4 * (i / 16), 4) as usize;
    let four = |at: usize| nibble(at, i) as i64;
    let five = |high: usize, at: usize| four(at) + 16 * field(block, 8 * high + i, 1);
    // Of 64 numbers the first 32 are low nibbles; of 128 those of four pairs of bits come one after the other.
    let wide = |at: usize| field(block, 8 * (at + i / 64 * 32 + i % 32) + i % 64 / 32 * 4, 4);
    let pairs = |at: usize| {
        field(
            block,
            8 * (at + i / 128 * 32 + i % 32) + i % 128 / 32 * 2,
            2,
        )
    };
    let column = |at: usize| field(block, 8 * (at + i % 32) + i / 32, 1);
    // The j-th of 6 bits: whole bytes' low bits first, later ones in nibbles and the upper two bits.
    let six = |half: usize, j: usize| match j {
        0..4 => field(block, 8 * (4 + 4 * half + j), 6),
        _ => {
            let upper = field(block, 8 * (4 * half + j) + 6, 2);
            field(block, 8 * (8 + j) + 4 * half, 4) + 16 * upper
        }
    };
    match storage {
        Storage::Q4_0 => units(block, 0) * (four(2) - 8),
        Storage::Q4_1 => units(block, 0) * four(4) + units(block, 2),
        Storage::Q5_0 => units(block, 0) * (five(2, 6) - 16),
        Storage::Q5_1 => units(block, 0) * five(4, 8) + units(block, 2),
        Storage::Q8_0 => units(block, 0) * i64::from(block[2 + i] as i8),
        Storage::Iq4Nl => units(block, 0) * STEPS[nibble(2, i)],
        Storage::Q2K => {
            let (s, m) = (field(block, i / 16 * 8, 4), field(block, i / 16 * 8 + 4, 4));
            units(block, 80) * s * pairs(16) - units(block, 82) * m
        }
        Storage::Q3K => {
            let j = i / 16;
            let s = field(block, 8 * (96 + j % 8) + j / 8 * 4, 4)
                + 16 * field(block, 8 * (104 + j % 4) + j / 4 * 2, 2);
            units(block, 108) * (s - 32) * (pairs(32) + 4 * column(0) - 4)
        }
        Storage::Q4K => {
            units(block, 0) * six(0, i / 32) * wide(16) - units(block, 2) * six(1, i / 32)
        }
        Storage::Q5K => {
            let q = wide(48) + 16 * column(16);
            units(block, 0) * six(0, i / 32) * q - units(block, 2) * six(1, i / 32)
        }
        Storage::Q6K => {
            let low = field(block, 8 * (i / 128 * 64 + i % 64) + i % 128 / 64 * 4, 4);
            let s = i64::from(block[192 + i / 16] as i8);
            units(block, 208) * s * (low + 16 * pairs(128) - 32)
        }
        Storage::Iq4Xs => {
            let j = i / 32;
            let s = field(block, 8 * 4 + 4 * j, 4) + 16 * field(block, 16 + 2 * j, 2);
            units(block, 0) * (s - 32) * STEPS[nibble(8 + 16 * j, i % 32)]
        }
        _ => unreachable!(),
    }
}

#[test]
fn every_number_is_exact_in_f64_and_rounded_once_in_f32() {
    for storage in Storage::QUANTISED {
        let block = storage.block();
        let count = (1 << 18) / block.numbers;
        let bytes = blocks(storage, count);
        let tensor = Tensor::new(storage, vec![count, block.numbers], Bytes::from(bytes)).unwrap();
        let (exact, single) = (tensor.to_vec::<f64>(), tensor.to_vec::<f32>());
        for (i, (exact, single)) in exact.into_iter().zip(single).enumerate() {
            let want = exactly(
                storage,
                tensor.row_bytes(i / block.numbers),
                i % block.numbers,
            );
            let want = want as f64 / f64::from(1 << 24);
            assert_eq!(exact, want, "{storage} {i}");
            assert_eq!(single, want as f32, "{storage} {i}");
        }
    }
}

#[test]
fn contraction_changes_nothing_and_half_precision_does() {
    fn check<B: Block>(storage: Storage) {
        let bytes = blocks(storage, 256);
        let mut narrower = false;
        for block in bytemuck::cast_slice::<u8, B>(&bytes) {
            let [scales, offsets] = block.factors(Plain);
            let (scales, offsets) = (scales.as_ref(), offsets.as_ref());
            for i in 0..B::NUMBERS / 32 {
                let quants = Plain.store_signed(block.quants(Plain, i).bytes(Plain));
                for (n, q) in quants.iter().enumerate() {
                    let factor = (2 * i + n / 16) * B::FACTORS / 2;
                    let (scale, offset) = (scales[factor], offsets[factor]);
                    let number = scale * f32::from(*q) + offset;
                    let contracted = scale.mul_add(f32::from(*q), offset);
                    assert_eq!(contracted.to_bits(), number.to_bits(), "{storage}");
                    assert!(
                        B::OFFSETS || offset.to_bits() == (-0f32).to_bits(),
                        "{storage}"
                    );
                    // As programs do that dequantise in f16.
                    narrower |= f16::from_f32(number).to_f32() != number;
                }
            }
        }
        assert!(narrower, "{storage}");
    }
    for storage in Storage::QUANTISED {
        by_block!(storage, check(storage), unreachable!());
    }
}

#[test]
fn a_factor_is_widened_as_half_does() {
    for bits in 0..=u16::MAX {
        let (got, want) = (
            Plain.widen_f16(bits.to_le_bytes()),
            f16::from_bits(bits).to_f32(),
        );
        let both_nan = got.is_nan() && want.is_nan();
        assert!(both_nan || got.to_bits() == want.to_bits(), "{bits:04x}");
    }
}

#[test]
fn numbers_of_a_tensor_are_found_one_by_one() {
    for storage in Storage::QUANTISED {
        let numbers = storage.block().numbers;
        let bytes = Bytes::from(blocks(storage, 12));
        let tensor = Tensor::new(storage, vec![3, 2, 2 * numbers], bytes).unwrap();
        let all = tensor.to_vec::<f64>();
        assert!(
            (0..all.len()).all(|i| tensor.number(i) == all[i]),
            "{storage}"
        );
        let parts: Vec<_> = tensor.parts(&[2, 2 * numbers]).collect();
        let joined: Vec<f64> = parts.iter().flat_map(Tensor::to_vec).collect();
        assert_eq!((parts.len(), joined), (3, all.clone()), "{storage}");
        let squares: f64 = all.iter().map(|x| x * x).sum();
        assert_eq!(tensor.frobenius(), squares.sqrt());
        let exchanged = tensor.transposed();
        assert_eq!(exchanged.shape(), [2 * numbers, 6]);
        assert!((0..all.len()).all(|i| {
            let (row, col) = (i / (2 * numbers), i % (2 * numbers));
            exchanged.number(col * 6 + row) == all[i]
        }));
    }
}

#[test]
fn blocks_have_the_sizes_of_their_types() {
    fn sizes<B: Block>() -> (usize, usize) {
        (B::NUMBERS, size_of::<B>())
    }
    for storage in Storage::QUANTISED {
        let block = storage.block();
        let sizes = by_block!(storage, sizes(), (0, 0));
        assert_eq!((block.numbers, block.bytes), sizes, "{storage}");
    }
}

#[test]
fn rows_are_whole_blocks() {
    for storage in Storage::QUANTISED {
        let block = storage.block();
        let new = |shape: &[usize], bytes: usize| {
            Tensor::new(storage, shape.into(), Bytes::from(vec![0; bytes])).is_some()
        };
        assert!(new(&[2, block.numbers], 2 * block.bytes), "{storage}");
        assert!(new(&[0, block.numbers], 0) && new(&[4, 0], 0), "{storage}");
        assert!(!new(&[2, block.numbers / 2], block.bytes), "{storage}");
        assert!(!new(&[block.numbers, 2], 2 * block.bytes), "{storage}");
        assert!(!new(&[2, block.numbers], 2 * block.bytes - 1), "{storage}");
        assert!(!new(&[], block.bytes), "{storage}");
        assert!(!new(&[usize::MAX, block.numbers], block.bytes), "{storage}");
        assert!(
            Tensor::from_f64(storage, vec![block.numbers], &vec![0.0; block.numbers]).is_none()
        );
    }
    // Alone of these types it has more bytes than numbers.
    assert_eq!(Storage::Q8_0.bytes_of(usize::MAX / 32 * 32), None);
}

#[test]
fn bf16_is_the_f32_number_rounded() {
    for storage in Storage::QUANTISED {
        let bytes = blocks(storage, 64);
        let mut numbers = vec![0f32; 64 * storage.block().numbers];
        let mut rounded = vec![bf16::ZERO; numbers.len()];
        decode(Plain, storage, &bytes, &mut numbers);
        decode(Plain, storage, &bytes, &mut rounded);
        let want = numbers.iter().map(|x| bf16::from_f32(*x).to_bits());
        assert!(rounded.iter().map(|x| x.to_bits()).eq(want), "{storage}");
    }
}
