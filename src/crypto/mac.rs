//! HMAC-SHA-256 (RFC 2104): under a key of its own file it vouches for audit records, under one of this process it names secrets.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

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

/// Why a file holds no such key.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", .path.display())]
pub struct MacKeyError {
    path: PathBuf,
    reason: String,
}

impl MacKey {
    /// The key in `bytes`, or `None` if there aren't [`KEY_LEN`] of them.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == KEY_LEN).then(|| Self(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    /// Reads a key: exactly [`KEY_LEN`] bytes in a file that only its owner and group can open.
    ///
    /// # Errors
    /// [`MacKeyError`]
    pub fn from_file(path: &Path) -> Result<Self, MacKeyError> {
        let failed = |reason: String| MacKeyError {
            path: path.to_owned(),
            reason,
        };
        let unreadable = |error: io::Error| failed(format!("can't read the audit key: {error}"));
        let file = File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
        if mode & 0o007 != 0 {
            return Err(failed(format!(
                "everybody can open this key (mode {mode:04o}); run: chmod o= {}",
                path.display()
            )));
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_LEN + 1));
        file.take(KEY_LEN as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        Self::from_slice(&bytes).ok_or_else(|| {
            failed(format!(
                "an audit key is {KEY_LEN} bytes long; make one with: (umask 077; head -c {KEY_LEN} /dev/urandom > FILE)"
            ))
        })
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
