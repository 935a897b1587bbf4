//! The types of ggml's tensors, as files number them.

use crate::tensor::Storage;

/// The types that something here is computed with.
const STORED: [(u32, Storage); 16] = [
    (0, Storage::F32),
    (1, Storage::F16),
    (2, Storage::Q4_0),
    (3, Storage::Q4_1),
    (6, Storage::Q5_0),
    (7, Storage::Q5_1),
    (8, Storage::Q8_0),
    (10, Storage::Q2K),
    (11, Storage::Q3K),
    (12, Storage::Q4K),
    (13, Storage::Q5K),
    (14, Storage::Q6K),
    (20, Storage::Iq4Nl),
    (23, Storage::Iq4Xs),
    (28, Storage::F64),
    (30, Storage::Bf16),
];

/// The other types that files have, by name. Numbers that are missing were given up.
const OTHERS: [(u32, &str); 18] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// What a type is here, or else its name.
pub(super) fn storage(id: u32) -> Result<Storage, String> {
    if let Some((_, storage)) = STORED.iter().find(|(number, _)| *number == id) {
        return Ok(*storage);
    }
    let named = OTHERS.iter().find(|(number, _)| *number == id);
    Err(named.map_or_else(|| format!("type {id}"), |(_, name)| (*name).into()))
}

/// The names of the types that something is computed with.
pub(super) fn known() -> String {
    STORED.map(|(_, storage)| storage.to_string()).join(", ")
}

/// The number of the type that stores as `storage` does.
pub(super) fn number(storage: Storage) -> u32 {
    let stored = STORED.iter().find(|(_, stored)| *stored == storage);
    // Every type has one, as a test sees.
    stored.map_or(u32::MAX, |(number, _)| *number)
}
