//! CRC-32 (ISO-HDLC, as in zlib and Ethernet), fast where tables are not.
//!
//! Most guests that are emulated, not virtualized, run this code: there a table look-up costs several times what a shift
//! costs, and carry-less multiplication is slower still. So the bulk is folded with shifts and xors alone, by the method of
//! "Chorba: A novel CRC32 implementation" (arXiv 2412.16398): since
//! x^300 = x^155 + x^117 + x^89 + 1 modulo the polynomial, each 64-bit word can be carried into the five that follow it.
//! Measured in an emulated guest: 560-930 MB/s, against 150-390 MB/s of slicing by sixteen in the same runs.

/// Below this many bytes the fold does not pay.
const FOLD_MIN: usize = 256;
/// The bytes into which the fold carries.
const CARRY: usize = 40;

/// Returns the checksum of what `crc` is the checksum of, followed by `bytes`; zero is the checksum of nothing.
pub(crate) fn update(crc: u32, bytes: &[u8]) -> u32 {
    if bytes.len() < FOLD_MIN {
        return tables(crc, bytes);
    }
    let (body, rest) = bytes.split_at((bytes.len() - CARRY) / 64 * 64);
    let (next, rest) = rest.split_at(CARRY);
    let carry = fold(!crc, body);
    let mut folded = [0; CARRY];
    for (index, word) in carry.iter().enumerate() {
        let at = index * 8;
        folded[at..at + 8].copy_from_slice(&(load(next, at) ^ word).to_le_bytes());
    }
    // The register is all in `folded` now; so it starts empty there: `!0` is what inverts to nothing.
    tables(tables(!0, &folded), rest)
}

fn tables(crc: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(crc);
    hasher.update(bytes);
    hasher.finalize()
}

fn load(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Carries whole blocks of 64 bytes into the 40 bytes behind them.
fn fold(register: u32, body: &[u8]) -> [u64; 5] {
    let mut carry = [u64::from(register), 0, 0, 0, 0];
    for block in body.chunks_exact(64) {
        for at in (0..64).step_by(8) {
            let [first, second, third, fourth, fifth] = carry;
            let word = load(block, at) ^ first;
            carry = [
                second,
                third ^ (word << 17) ^ (word << 55),
                fourth ^ (word >> 47) ^ (word >> 9) ^ (word << 19),
                fifth ^ (word >> 45) ^ (word << 44),
                word >> 20,
            ];
        }
    }
    carry
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn the_standard_check_value() {
        assert_eq!(update(0, b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn the_fold_agrees_with_the_tables_at_every_length_and_split() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let bytes: Vec<u8> = core::iter::repeat_with(|| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 32) as u8
        })
        .take(4096)
        .collect();
        for length in (0..700).chain([1023, 1024, 1025, 4095, 4096]) {
            let whole = tables(0, &bytes[..length]);
            assert_eq!(update(0, &bytes[..length]), whole, "{length} bytes");
            let split = length / 3;
            assert_eq!(
                update(update(0, &bytes[..split]), &bytes[split..length]),
                whole,
                "{length} bytes, split"
            );
        }
    }
}
