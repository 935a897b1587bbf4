//! ggml's quantised types against the Python package `gguf` (reference/quantised_golden.py).

use bytes::Bytes;
use context_patch::tensor::{Storage, Tensor};
use half::bf16;
use safetensors::SafeTensors;

/// For each type the golden blocks and what they are in f32.
fn golden() -> Vec<(Tensor, Vec<f32>)> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/reference/golden/quantised.safetensors"
    );
    let file = std::fs::read(path).unwrap();
    let golden = SafeTensors::deserialize(&file).unwrap();
    let of_type = |storage: Storage| {
        let blocks = golden.tensor(&format!("{storage}.blocks")).unwrap();
        let numbers = golden.tensor(&format!("{storage}.f32")).unwrap();
        let data = Bytes::copy_from_slice(blocks.data());
        let (values, _) = numbers.data().as_chunks();
        let values = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
        (
            Tensor::new(storage, numbers.shape().into(), data).unwrap(),
            values,
        )
    };
    Storage::QUANTISED.map(of_type).into()
}

/// All bits, but of NaN only that it is one.
fn bits(x: f32) -> u32 {
    if x.is_nan() {
        f32::NAN.to_bits()
    } else {
        x.to_bits()
    }
}

#[test]
fn f32_has_the_bits_of_gguf() {
    for (tensor, want) in golden() {
        let got = tensor.to_vec::<f32>();
        assert_eq!(got.len(), want.len());
        let wrong = (0..want.len()).find(|&i| bits(got[i]) != bits(want[i]));
        assert_eq!(wrong, None, "{}", tensor.storage());
        // Row by row as well.
        let mut row = vec![0f32; tensor.cols()];
        for (r, want) in want.chunks_exact(tensor.cols()).enumerate() {
            tensor.read_row(r, &mut row);
            assert!(row.iter().zip(want).all(|(&a, &b)| bits(a) == bits(b)));
        }
    }
}

#[test]
fn the_golden_numbers_have_what_is_special() {
    for (tensor, want) in golden() {
        let name = tensor.storage();
        assert!(want.iter().any(|x| x.is_nan()), "{name}");
        assert!(want.iter().any(|x| x.is_infinite()), "{name}");
        assert!(
            want.iter().any(|x| x.to_bits() == (-0f32).to_bits()),
            "{name}"
        );
        let smallest = |x: &f32| *x != 0.0 && x.abs() < 1e-4;
        assert!(want.iter().any(smallest), "{name}");
    }
}

#[test]
fn f64_rounds_to_f32_and_f32_to_bf16() {
    let mut rounded = false;
    for (tensor, want) in golden() {
        let (exact, narrow) = (tensor.to_vec::<f64>(), tensor.to_vec::<bf16>());
        for ((exact, narrow), want) in exact.into_iter().zip(narrow).zip(want) {
            assert_eq!(bits(exact as f32), bits(want), "{}", tensor.storage());
            assert_eq!(
                bits(narrow.to_f32()),
                bits(bf16::from_f32(want).to_f32()),
                "{}",
                tensor.storage()
            );
            rounded |= f64::from(want) != exact && exact.is_finite();
        }
    }
    assert!(rounded, "some numbers are exact in f64 alone");
}
