//! Where ciphertexts are: searching files for them and counting them by keyring and version. No key is at hand here.
//!
//! [`Search`] is pure and looks at windows of bytes; [`scan`] feeds it files. docs/scan.md says what is found and what isn't.

mod files;
mod opaque;
mod search;
mod tally;
mod walk;

pub use files::{FileReport, Options, Progress, Report, Root, scan};
pub use search::{Finding, Form, LOOK_AHEAD, LOOK_BEHIND, Search};
pub use tally::{Counts, Tally};
pub use walk::{Visit, walk};

use crate::crypto::{OVERHEAD, TEXT_PREFIX};

/// The characters of the shortest ciphertext's text form behind `sk1.`: 49 bytes in base64url.
pub const SHORTEST_TEXT: usize = (OVERHEAD * 4).div_ceil(3);

/// How many characters of base64url without padding `bytes` begins with, counted up to `most`.
pub fn text_run(bytes: &[u8], most: usize) -> usize {
    let is_digit = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    bytes.iter().take(most).take_while(is_digit).count()
}

/// The text form's first bytes.
pub const TEXT_NEEDLE: &[u8] = TEXT_PREFIX.as_bytes();
