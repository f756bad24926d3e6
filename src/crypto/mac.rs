//! HMAC-SHA-256 (RFC 2104): under a key of its own file it vouches for audit records, under one of this process it names secrets.

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use super::{KEY_LEN, RandomnessUnavailable, random};

/// What every MAC begins with, so that the key could serve another purpose without harm.
const LABEL: &[u8] = b"sidekey audit v1\n";

/// A key that vouches for audit records. The library zeroizes it on drop.
pub struct MacKey(hmac::Key);

/// A key that was drawn for this process alone: what it names tells nothing about a value, not even to somebody who guesses it. The
/// library zeroizes it on drop.
pub struct NamingKey(hmac::Key);

impl NamingKey {
    /// Draws a key.
    ///
    /// # Errors
    /// [`RandomnessUnavailable`]
    pub fn draw() -> Result<Self, RandomnessUnavailable> {
        let bytes = Zeroizing::new(random::<KEY_LEN>()?);
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &*bytes)))
    }

    /// A name for a value: the same for the same bytes, and for no others.
    pub fn name(&self, value: &[u8]) -> [u8; 16] {
        let mut name = [0; 16];
        name.copy_from_slice(&hmac::sign(&self.0, value).as_ref()[..16]);
        name
    }
}

impl MacKey {
    /// The key in `bytes`, or `None` if there aren't [`KEY_LEN`] of them.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == KEY_LEN).then(|| Self(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    /// The MAC of an audit record.
    pub fn record_mac(&self, record: &[u8]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(LABEL);
        context.update(record);
        let mut mac = [0; 32];
        mac.copy_from_slice(context.sign().as_ref());
        mac
    }

    /// Whether `mac` is that of `record`.
    pub fn verifies_record(&self, record: &[u8], mac: &[u8]) -> bool {
        super::equal_in_constant_time(&self.record_mac(record), mac)
    }
}
