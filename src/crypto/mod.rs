//! Keys and the bytes they protect: the only module that holds key bytes.
//!
//! [`Dek`] and [`SecretKey`] hold key bytes while a manifest is loaded or a command runs.
//! [`VersionKeys`] holds a serving sidecar's subkeys in locked memory that is excluded from core
//! dumps. None of them implements `Debug` or serialization. Bytes go in and out; nothing here opens
//! a file.

mod header;
mod id;
mod keys;
mod mac;
mod memory;
mod message;
mod proof;
mod report;
mod signature;
mod stream;
mod wrap;
mod xaes;

pub use header::{
    CiphertextError, Header, OVERHEAD, PEEK_LEN, PREFIX_LEN, Peek, SUITE_MESSAGE, SUITE_STREAM,
    peek,
};
pub use id::{InstanceId, KeyringId, RolloutId};
pub use keys::{Dek, KEY_LEN, SecretKey, VersionKeys};
pub use mac::{MAC_LEN, MacKey};
pub use memory::{LockReport, harden_process, hide_process, lock_report};
pub use message::{Opener, Sealer, TEXT_PREFIX, from_text, to_text};
pub use proof::ProofKey;
pub use report::ReportKey;
pub use signature::{SigningKey, SigningKeyError, verify_signature};
pub use stream::{
    CHUNK_LEN, SEALED_CHUNK_LEN, StreamOpener, StreamSealer, opened_stream_len, sealed_stream_len,
};
pub use wrap::{WrapContext, bind_dek, unbind_dek, unwrap_dek, wrap_dek};

use std::io;

use aws_lc_rs::constant_time;

pub use crate::encoding::{from_hex, to_hex};

/// The operating system's random generator failed, so nothing may be encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system's random generator failed; encryption needs it")]
pub struct RandomnessUnavailable;

/// Returns random bytes from the operating system's generator.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], RandomnessUnavailable> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| RandomnessUnavailable)?;
    Ok(bytes)
}

/// Returns the SHA-256 (FIPS 180-4) of bytes that aren't secret.
pub fn fingerprint(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    hash
}

/// Returns the SHA-256 (FIPS 180-4) of everything in `reader`, which isn't secret, and its length
/// in bytes.
///
/// # Errors
/// Those of the reader.
pub fn fingerprint_of(reader: &mut impl io::Read) -> io::Result<([u8; 32], usize)> {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let (mut block, mut length) = ([0; 8 << 10], 0);
    loop {
        let read = match reader.read(&mut block) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        context.update(&block[..read]);
        length += read;
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    Ok((hash, length))
}

/// Compares two byte strings in a time that depends only on their lengths.
pub fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}
