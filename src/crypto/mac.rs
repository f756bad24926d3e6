//! HMAC-SHA-256 (RFC 2104, FIPS 198-1).

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use super::{KEY_LEN, RandomnessUnavailable, equal_in_constant_time, random};

/// The length of a MAC, in bytes.
pub const MAC_LEN: usize = 32;

/// An HMAC-SHA-256 key. The library zeroizes it on drop.
pub struct MacKey(hmac::Key);

impl MacKey {
    /// Generates a random key that lives only in this process.
    ///
    /// # Errors
    /// [`RandomnessUnavailable`]
    pub fn generate() -> Result<Self, RandomnessUnavailable> {
        let bytes = Zeroizing::new(random::<KEY_LEN>()?);
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &*bytes)))
    }

    /// Returns the key in `bytes`, or `None` unless there are exactly [`KEY_LEN`] of them.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == KEY_LEN).then(|| Self(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    /// Returns the MAC of the concatenated `parts`.
    pub fn mac(&self, parts: &[&[u8]]) -> [u8; MAC_LEN] {
        let mut context = hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(part);
        }
        let mut mac = [0; MAC_LEN];
        mac.copy_from_slice(context.sign().as_ref());
        mac
    }

    /// Returns whether `mac` is the MAC of the concatenated `parts`, in constant time.
    pub fn verify(&self, parts: &[&[u8]], mac: &[u8]) -> bool {
        equal_in_constant_time(&self.mac(parts), mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_concatenated() {
        let key = MacKey::from_slice(&[7; KEY_LEN]).expect("32 bytes");
        let mac = key.mac(&[b"ab", b"", b"c"]);
        assert_eq!(mac, key.mac(&[b"abc"]));
        assert!(key.verify(&[b"abc"], &mac));
        assert!(!key.verify(&[b"abd"], &mac));
        assert!(!key.verify(&[b"abc"], &mac[1..]));
    }

    #[test]
    fn generated_keys_differ_and_short_keys_are_refused() {
        let [one, other] = [(); 2].map(|()| MacKey::generate().expect("randomness"));
        assert_ne!(one.mac(&[b"abc"]), other.mac(&[b"abc"]));
        assert!(MacKey::from_slice(&[7; KEY_LEN - 1]).is_none());
    }
}
