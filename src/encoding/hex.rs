//! Hexadecimal digits (RFC 4648 §8) of bytes that aren't secret.

/// Encodes bytes as lower-case digits.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";

    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        for digit in [byte >> 4, byte & 0xF] {
            text.push(char::from(DIGITS[usize::from(digit)]));
        }
    }
    text
}

/// Decodes exactly `2 * N` digits of either case. Returns `None` for anything else.
pub fn from_hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let value = |digit: u8| char::from(digit).to_digit(16);
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (value(pair[0])? << 4 | value(pair[1])?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_go_both_ways() {
        assert_eq!(to_hex(&[]), "");
        assert_eq!(to_hex(&[0x00, 0x9a, 0xff]), "009aff");
        assert_eq!(from_hex(b"009aFf"), Some([0x00, 0x9a, 0xff]));
    }

    #[test]
    fn other_lengths_and_characters_are_refused() {
        for digits in ["", "0", "0011", "000", "0g", "+1", " 1", "é"] {
            assert_eq!(from_hex::<1>(digits.as_bytes()), None, "{digits}");
        }
    }
}
