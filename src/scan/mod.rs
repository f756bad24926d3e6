//! Searches files for ciphertexts, and counts them by keyring and version. No key is needed.
//!
//! [`Search`] is pure: it searches windows of bytes. [`scan`] feeds it files. docs/scan.md
//! specifies what is found and what isn't.

mod counts;
mod files;
mod opaque;
mod search;
mod walk;

pub use counts::{Counts, CountsByKey};
pub use files::{FileReport, Options, Progress, Report, Root, scan};
pub use search::{Finding, Form, LOOK_AHEAD, LOOK_BEHIND, Search};
pub use walk::{Visit, walk};

use crate::crypto::{OVERHEAD, TEXT_PREFIX};

/// The length of the shortest text form after `sk1.`, in characters: 49 bytes in base64url.
pub const SHORTEST_TEXT: usize = (OVERHEAD * 4).div_ceil(3);

/// Returns how many base64url characters `bytes` starts with, up to `most`.
pub fn text_run(bytes: &[u8], most: usize) -> usize {
    let is_digit = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    bytes.iter().take(most).take_while(is_digit).count()
}

/// The first bytes of the text form.
pub const TEXT_NEEDLE: &[u8] = TEXT_PREFIX.as_bytes();
