use super::super::tests::blocks;
use super::super::{ByteLanes, decode};
use super::*;

/// Random 16 bits.
fn bits() -> impl FnMut() -> u16 {
    let mut state = 1u64;
    move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 48) as u16
    }
}

/// Numbers nearly of the normal distribution: each the sum of twelve even ones.
fn normal(count: usize) -> Vec<f64> {
    let mut bits = bits();
    let mut sum = || (0..12).map(|_| f64::from(bits())).sum::<f64>();
    (0..count).map(|_| sum() / 65536.0 - 6.0).collect()
}

/// The numbers of blocks.
fn decoded(storage: Storage, bytes: &[u8]) -> Vec<f64> {
    let block = storage.block();
    let mut numbers = vec![0.0; bytes.len() / block.bytes * block.numbers];
    decode(Plain, storage, bytes, &mut numbers);
    numbers
}

/// The numbers as they come back.
fn back(storage: Storage, numbers: &[f64]) -> Vec<f64> {
    decoded(storage, &quantise(storage, numbers, None).unwrap())
}

/// The root of the mean squared difference.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b));
    (squares.sum::<f64>() / a.len() as f64).sqrt()
}

/// As many small numbers as a block has, and a large one.
fn outlier(storage: Storage, large: f64) -> Vec<f64> {
    let mut numbers = normal(storage.block().numbers);
    numbers[5] = large;
    numbers
}

#[test]
fn every_part_is_packed_where_decoding_has_it() {
    fn check<B: Quantise>(storage: Storage) {
        let mut bits = bits();
        let mut within = |[least, greatest]: [i8; 2]| {
            let count = i16::from(greatest) - i16::from(least) + 1;
            (i16::from(least) + (bits() % 256) as i16 % count) as i8
        };
        for _ in 0..64 {
            let parts = Parts {
                factors: [0.75, -0.625],
                scales: std::array::from_fn(|_| within(B::SCALES)),
                mins: std::array::from_fn(|_| within(B::MINS)),
                quants: [[0; 32]; 8].map(|row| row.map(|_| B::nearest(within(B::QUANTS).into()))),
            };
            let block = B::pack(&parts);
            let lines = lines_of(&block);
            let integers = parts.scales.iter().zip(&parts.mins);
            let count = B::NUMBERS / 32 * B::FACTORS;
            for (line, (s, m)) in lines.iter().zip(integers).take(count) {
                let want = [0.75 * f64::from(*s), -0.625 * f64::from(*m)];
                assert_eq!(*line, want, "{storage}");
            }
            for i in 0..B::NUMBERS / 32 {
                let quants = Plain.store_signed(block.quants(Plain, i).bytes(Plain));
                assert_eq!(quants, parts.quants[i], "{storage}");
            }
        }
    }
    for storage in Storage::QUANTISED {
        by_block!(storage, check(storage), unreachable!());
    }
}

#[test]
fn each_number_is_the_nearest_that_its_group_has() {
    fn check<B: Quantise>(storage: Storage, numbers: &[f64]) {
        let bytes = quantise(storage, numbers, None).unwrap();
        let all = decoded(storage, &bytes);
        let size = 32 / B::FACTORS;
        for (i, block) in bytemuck::cast_slice::<u8, B>(&bytes).iter().enumerate() {
            let lines = lines_of(block);
            for n in 0..B::NUMBERS {
                let (x, got) = (numbers[i * B::NUMBERS + n], all[i * B::NUMBERS + n]);
                let [scale, offset] = lines[n / size];
                for q in B::QUANTS[0]..=B::QUANTS[1] {
                    let other = scale * f64::from(B::nearest(q.into())) + offset;
                    assert!((x - got).abs() <= (x - other).abs(), "{storage} {x} {got}");
                }
            }
        }
    }
    for storage in Storage::QUANTISED {
        let several = normal(2048);
        let large = outlier(storage, -3000.0);
        for numbers in [several, large] {
            by_block!(storage, check(storage, &numbers), unreachable!());
        }
    }
}

#[test]
fn the_error_is_less_than_ggml_s() {
    // What is left by ggml_quantize_chunk, without an importance matrix.
    let ggml = |storage| match storage {
        Storage::Q4_0 => 0.08384,
        Storage::Q4_1 => 0.07679,
        Storage::Q5_0 => 0.04144,
        Storage::Q5_1 => 0.03722,
        Storage::Q8_0 => 0.00522,
        Storage::Q2K => 0.29031,
        Storage::Q3K => 0.14830,
        Storage::Q4K => 0.06987,
        Storage::Q5K => 0.03562,
        Storage::Q6K => 0.01745,
        Storage::Iq4Nl => 0.07518,
        Storage::Iq4Xs => 0.07579,
        _ => unreachable!(),
    };
    let numbers = normal(1 << 14);
    for storage in Storage::QUANTISED {
        let error = distance(&numbers, &back(storage, &numbers));
        assert!(error < 0.98 * ggml(storage), "{storage} {error}");
        assert!(error > 0.85 * ggml(storage), "{storage} {error}");
    }
}

#[test]
fn numbers_that_were_decoded_stay() {
    for storage in Storage::QUANTISED {
        let before = blocks(storage, 64);
        let numbers = decoded(storage, &before);
        let after = quantise(storage, &numbers, Some(&before)).unwrap();
        assert_eq!(decoded(storage, &after), numbers, "{storage}");

        // A change is at worst lost.
        let before = quantise(storage, &normal(1024), None).unwrap();
        let numbers = decoded(storage, &before);
        let change: Vec<f64> = normal(2048)[1024..].iter().map(|x| x / 100.0).collect();
        let changed: Vec<f64> = numbers.iter().zip(&change).map(|(x, y)| x + y).collect();
        let after = quantise(storage, &changed, Some(&before)).unwrap();
        let error = distance(&changed, &decoded(storage, &after));
        assert!(error <= distance(&changed, &numbers), "{storage}");
    }
}

#[test]
fn zeros_are_zeros_whatever_their_sign() {
    for storage in Storage::QUANTISED {
        for zero in [0.0, -0.0, f64::MIN_POSITIVE, -LEAST / 2.0] {
            let numbers = back(storage, &vec![zero; 512]);
            assert!(numbers.iter().all(|x| x.to_bits() == 0), "{storage}");
        }
    }
}

#[test]
fn small_numbers_have_denormal_factors() {
    for storage in Storage::QUANTISED {
        for size in [1e-6, 1e-5] {
            let numbers: Vec<f64> = normal(512).iter().map(|x| size * x).collect();
            let error = distance(&numbers, &back(storage, &numbers)) / size;
            assert!(error < 0.3, "{storage} {size} {error}");
        }
    }
}

#[test]
fn a_large_number_has_what_it_needs() {
    for storage in Storage::QUANTISED {
        for large in [1000.0, -1000.0, 60000.0, -60000.0] {
            let got = back(storage, &outlier(storage, large))[5];
            assert!((got / large - 1.0).abs() < 0.01, "{storage} {large} {got}");
        }
    }
}

#[test]
fn what_f16_has_no_factors_for_is_refused() {
    for storage in Storage::QUANTISED {
        for large in [f64::NAN, f64::NEG_INFINITY, f64::MAX, -1e99, 1e10] {
            let numbers = outlier(storage, large);
            assert_eq!(quantise(storage, &numbers, None), None, "{storage} {large}");
            let before = blocks(storage, 1);
            assert_eq!(quantise(storage, &numbers, Some(&before)), None);
        }
    }
}

#[test]
fn the_bytes_are_the_same_everywhere() {
    let numbers = normal(1 << 11);
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for storage in Storage::QUANTISED {
        for byte in quantise(storage, &numbers, None).unwrap() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    assert_eq!(hash, 14823293298745077154);
}
