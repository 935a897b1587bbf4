//! GGUF files made by hand, so that the crate's own writer is not what its reader is held against.

#![allow(dead_code, reason = "not every test uses all of it")]

/// A value of the metadata.
#[derive(Clone, Debug)]
pub enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(&'static str),
    Texts(Vec<&'static str>),
    U32s(Vec<u32>),
}

/// A file: its values, and its tensors with their dimensions (innermost first), type and bytes.
#[derive(Clone, Debug)]
pub struct File {
    pub version: u32,
    pub values: Vec<(String, Value)>,
    pub tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl File {
    /// The value of a key, to change or add.
    pub fn set(&mut self, key: &str, value: Value) {
        self.values.retain(|(known, _)| known != key);
        self.values.push((key.into(), value));
    }

    pub fn remove(&mut self, key: &str) {
        self.values.retain(|(known, _)| known != key);
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::from(b"GGUF");
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, value) in &self.values {
            text(&mut out, key);
            write_value(&mut out, value);
        }
        let mut offset = 0;
        for (name, dimensions, kind, bytes) in &self.tensors {
            text(&mut out, name);
            out.extend((dimensions.len() as u32).to_le_bytes());
            for extent in dimensions {
                out.extend(extent.to_le_bytes());
            }
            out.extend(kind.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += bytes.len().next_multiple_of(32);
        }
        for (_, _, _, bytes) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(bytes);
        }
        out
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    let mut kind = |kind: u32| out.extend(kind.to_le_bytes());
    match value {
        Value::U32(number) => {
            kind(4);
            out.extend(number.to_le_bytes());
        }
        Value::F32(number) => {
            kind(6);
            out.extend(number.to_le_bytes());
        }
        Value::Bool(flag) => {
            kind(7);
            out.push((*flag).into());
        }
        Value::Text(string) => {
            kind(8);
            text(out, string);
        }
        Value::Texts(strings) => {
            kind(9);
            kind(8);
            out.extend((strings.len() as u64).to_le_bytes());
            strings.iter().for_each(|string| text(out, string));
        }
        Value::U32s(numbers) => {
            kind(9);
            kind(4);
            out.extend((numbers.len() as u64).to_le_bytes());
            numbers
                .iter()
                .for_each(|number| out.extend(number.to_le_bytes()));
        }
    }
}

/// The types that a tensor can have: name, number, numbers of a block, its bytes, and where it has scales in f16.
pub const TYPES: [(&str, u32, usize, usize, &[usize]); 12] = [
    ("Q4_0", 2, 32, 18, &[0]),
    ("Q4_1", 3, 32, 20, &[0, 2]),
    ("Q5_0", 6, 32, 22, &[0]),
    ("Q5_1", 7, 32, 24, &[0, 2]),
    ("Q8_0", 8, 32, 34, &[0]),
    ("Q2_K", 10, 256, 84, &[80, 82]),
    ("Q3_K", 11, 256, 110, &[108]),
    ("Q4_K", 12, 256, 144, &[0, 2]),
    ("Q5_K", 13, 256, 176, &[0, 2]),
    ("Q6_K", 14, 256, 210, &[208]),
    ("IQ4_NL", 20, 32, 18, &[0]),
    ("IQ4_XS", 23, 256, 136, &[0]),
];

/// A Llama of two layers and 96 tokens whose matrices are random blocks of one of [`TYPES`].
pub fn llama((_, kind, numbers, bytes, scales): (&str, u32, usize, usize, &[usize])) -> File {
    let mut state = 1u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as u32
    };
    let mut matrix = |cols: u64, rows: u64| {
        let mut data = Vec::new();
        for _ in 0..(cols * rows) as usize / numbers {
            let mut block: Vec<u8> = (0..bytes).map(|_| random() as u8).collect();
            for &at in scales {
                // Near 2⁻¹², so that no sum of products of codes grows.
                let scale = 0x0c00 + (random() % 0x0400) as u16;
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
            data.extend(block);
        }
        (vec![cols, rows], kind, data)
    };
    let ones = |length: u64| {
        let data = (0..length).flat_map(|_| 1f32.to_le_bytes());
        (vec![length], 0, data.collect::<Vec<u8>>())
    };
    let mut tensors = vec![
        ("token_embd.weight".into(), matrix(256, 96)),
        ("output_norm.weight".into(), ones(256)),
    ];
    for layer in 0..2 {
        let mut add = |name: &str, tensor| {
            tensors.push((format!("blk.{layer}.{name}.weight"), tensor));
        };
        add("attn_norm", ones(256));
        add("attn_q", matrix(256, 256));
        add("attn_k", matrix(256, 128));
        add("attn_v", matrix(256, 128));
        add("attn_output", matrix(256, 256));
        add("ffn_norm", ones(256));
        add("ffn_gate", matrix(256, 512));
        add("ffn_up", matrix(256, 512));
        add("ffn_down", matrix(512, 256));
    }
    let values = [
        ("general.architecture", Value::Text("llama")),
        ("llama.block_count", Value::U32(2)),
        ("llama.context_length", Value::U32(128)),
        ("llama.embedding_length", Value::U32(256)),
        ("llama.feed_forward_length", Value::U32(512)),
        ("llama.attention.head_count", Value::U32(4)),
        ("llama.attention.head_count_kv", Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.freq_base", Value::F32(10_000.0)),
        ("tokenizer.ggml.model", Value::Text("no_vocab")),
    ];
    File {
        version: 3,
        values: values.map(|(key, value)| (key.into(), value)).into(),
        tensors: tensors
            .into_iter()
            .map(|(name, (dimensions, kind, data))| (name, dimensions, kind, data))
            .collect(),
    }
}
