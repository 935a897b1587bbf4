//! The operations on 32 bytes that take a block apart.

/// An instruction set's operations on 32 bytes.
pub(crate) trait ByteLanes: Copy {
    /// 32 bytes, in halves.
    type Bytes: Copy;

    /// An f16 widened: what `f16::to_f32` gives, but without asking what the processor has.
    #[inline(always)]
    fn widen_f16(self, bytes: [u8; 2]) -> f32 {
        let bits = i32::from(i16::from_le_bytes(bytes)) as u32;
        // The exponents' biases differ by 112; multiplication normalises what is denormal.
        let shifted = bits << 13 & 0x8fff_e000;
        if bits & 0x7c00 == 0x7c00 {
            return f32::from_bits(shifted | 0x7f80_0000);
        }
        f32::from_bits(shifted) * f32::from_bits((127 + 112) << 23)
    }

    /// Four f16 widened.
    #[inline(always)]
    fn widen_four_f16(self, four: [[u8; 2]; 4]) -> [f32; 4] {
        four.map(|bytes| self.widen_f16(bytes))
    }

    /// Reads them.
    fn load_bytes(self, bytes: &[u8; 32]) -> Self::Bytes;
    /// Reads signed ones.
    fn load_signed(self, bytes: &[i8; 32]) -> Self::Bytes;
    /// Reads two halves, of which each byte has four bits: those from its half's shift on. The other bits are any.
    fn load_halves(self, halves: [&[u8; 16]; 2], shifts: [usize; 2]) -> Self::Bytes;
    /// Stores them as signed ones.
    fn store_signed(self, bytes: Self::Bytes) -> [i8; 32];
    /// Of each byte the bits of `mask` from bit `shift` on, which are no more than it has.
    fn field(self, bytes: Self::Bytes, shift: usize, mask: u8) -> Self::Bytes;
    /// `low` with the bits of `high` above its `shift` bits, where a byte has room for both.
    fn joined(self, low: Self::Bytes, high: Self::Bytes, shift: usize) -> Self::Bytes;
    /// Each byte less `bias`.
    fn less(self, bytes: Self::Bytes, bias: i8) -> Self::Bytes;
    /// `more` added to each byte whose bit is set, the lowest bit's first.
    fn plus(self, bytes: Self::Bytes, bits: u32, more: i8) -> Self::Bytes;
    /// Bit `bit` of each byte, the first byte's lowest.
    fn column(self, bytes: Self::Bytes, bit: usize) -> u32;
    /// `table[i]` for each byte i, which is below 16.
    fn look_up(self, table: &[i8; 16], indices: Self::Bytes) -> Self::Bytes;
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl ByteLanes for Plain {
    type Bytes = [u8; 32];

    #[inline(always)]
    fn load_bytes(self, bytes: &[u8; 32]) -> [u8; 32] {
        *bytes
    }
    #[inline(always)]
    fn load_signed(self, bytes: &[i8; 32]) -> [u8; 32] {
        bytes.map(|b| b as u8)
    }
    #[inline(always)]
    fn load_halves(self, halves: [&[u8; 16]; 2], shifts: [usize; 2]) -> [u8; 32] {
        std::array::from_fn(|i| halves[i / 16][i % 16] >> shifts[i / 16])
    }
    #[inline(always)]
    fn store_signed(self, bytes: [u8; 32]) -> [i8; 32] {
        bytes.map(|b| b as i8)
    }
    #[inline(always)]
    fn field(self, bytes: [u8; 32], shift: usize, mask: u8) -> [u8; 32] {
        bytes.map(|b| b >> shift & mask)
    }
    #[inline(always)]
    fn joined(self, mut low: [u8; 32], high: [u8; 32], shift: usize) -> [u8; 32] {
        for (low, high) in low.iter_mut().zip(high) {
            *low |= high << shift;
        }
        low
    }
    #[inline(always)]
    fn less(self, bytes: [u8; 32], bias: i8) -> [u8; 32] {
        bytes.map(|b| b.wrapping_sub(bias as u8))
    }
    #[inline(always)]
    fn plus(self, mut bytes: [u8; 32], bits: u32, more: i8) -> [u8; 32] {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = byte.wrapping_add((bits >> i & 1) as u8 * more as u8);
        }
        bytes
    }
    #[inline(always)]
    fn column(self, bytes: [u8; 32], bit: usize) -> u32 {
        let bits = bytes.iter().enumerate();
        bits.fold(0, |bits, (i, byte)| bits | u32::from(byte >> bit & 1) << i)
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], indices: [u8; 32]) -> [u8; 32] {
        indices.map(|i| table[usize::from(i & 15)] as u8)
    }
}
