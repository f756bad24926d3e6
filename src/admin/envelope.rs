//! The envelope of a backup: an age file (C2SP, <https://c2sp.org/age>), which `age` and `rage` can
//! decrypt as well.
//!
//! Plaintext data keys pass through here, between the payload and the library.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    iter,
    path::Path,
};

use age::{
    DecryptError, Decryptor, EncryptError, Encryptor, IdentityFile, scrypt,
    secrecy::{ExposeSecret, SecretString},
    x25519,
};
use zeroize::Zeroizing;

use crate::files::{Allowed, read_private};

/// log2 of scrypt's N: 256 MiB and about a second, like `age` itself.
const WORK_FACTOR: u8 = 18;
/// The highest work factor that is accepted: 4 GiB and about 16 seconds.
const MAX_WORK_FACTOR: u8 = 22;
/// The minimum length of a passphrase, in characters, against offline guessing.
const MIN_PASSPHRASE: usize = 12;

/// A backup can't be encrypted or decrypted.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// A passphrase that is too short.
    #[error(
        "the passphrase has fewer than {MIN_PASSPHRASE} characters; \
         generate one with: openssl rand -base64 24"
    )]
    Weak,
    /// An invalid file of recipients, identities or a passphrase.
    #[error("{0}")]
    Input(String),
    /// Decryption failed.
    #[error("can't decrypt the backup: {0}")]
    Closed(DecryptError),
    /// Encryption failed.
    #[error("can't encrypt the backup: {0}")]
    Encrypt(EncryptError),
    /// The file was truncated or modified.
    #[error("the backup was truncated or modified: {0}")]
    Damaged(io::Error),
}

/// A passphrase, zeroized on drop.
pub struct Passphrase(SecretString);

impl Passphrase {
    /// Reads the first line of a file, or of a descriptor such as `/dev/fd/3`.
    ///
    /// # Errors
    /// The file can't be read, is readable by others, or the line is too long.
    pub fn from_file(path: &Path) -> Result<Self, EnvelopeError> {
        const MAX_LENGTH: usize = 4096;

        let wrong = |reason: String| EnvelopeError::Input(format!("{}: {reason}", path.display()));
        let bytes = read_private(
            path,
            "the passphrase",
            Allowed::OwnerAndGroup,
            MAX_LENGTH + 2,
        )
        .map_err(|error| wrong(error.to_string()))?;
        let line = bytes
            .split(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > MAX_LENGTH {
            // A truncated passphrase would not work with other tools.
            return Err(wrong(format!("the passphrase exceeds {MAX_LENGTH} bytes")));
        }
        let text =
            std::str::from_utf8(line).map_err(|_| wrong("the passphrase is not UTF-8".into()))?;
        Ok(Self::new(text))
    }

    /// Wraps a passphrase typed on the terminal.
    pub fn new(text: &str) -> Self {
        Self(SecretString::from(text))
    }

    /// Compares in constant time.
    pub fn equals(&self, other: &Self) -> bool {
        crate::crypto::equal_in_constant_time(
            self.0.expose_secret().as_bytes(),
            other.0.expose_secret().as_bytes(),
        )
    }
}

/// What a backup is encrypted for.
pub enum EncryptFor {
    /// A passphrase.
    Passphrase(Passphrase),
    /// age recipients.
    Recipients(Vec<x25519::Recipient>),
}

/// What decrypts a backup.
pub enum DecryptWith {
    /// A passphrase.
    Passphrase(Passphrase),
    /// age identities.
    Identities(Vec<Box<dyn age::Identity + Send + Sync>>),
}

impl DecryptWith {
    /// Reads a file of identities, as written by `age-keygen`.
    ///
    /// # Errors
    /// The file can't be read or contains none.
    pub fn from_identity_file(path: &Path) -> Result<Self, EnvelopeError> {
        let failed = |reason: String| EnvelopeError::Input(format!("{}: {reason}", path.display()));
        let file = File::open(path)
            .map_err(|error| failed(format!("can't read the identities: {error}")))?;
        // The library's errors contain line numbers, but no content.
        let identities = IdentityFile::from_buffer(BufReader::new(file))
            .map_err(|error| failed(error.to_string()))?;
        let identities = identities
            .into_identities()
            .map_err(|error| failed(error.to_string()))?;
        if identities.is_empty() {
            return Err(failed(
                "contains no identity; generate one with age-keygen".into(),
            ));
        }
        Ok(Self::Identities(identities))
    }
}

/// Parses a recipient, `age1…`.
///
/// # Errors
/// The text is not an X25519 recipient.
pub fn recipient(text: &str) -> Result<x25519::Recipient, EnvelopeError> {
    text.trim().parse().map_err(|reason: &str| {
        EnvelopeError::Input(format!(
            "{:.12}… is not an X25519 recipient (age1…): {reason}",
            text.trim()
        ))
    })
}

/// Reads a file of recipients, one per line, with empty lines and `#` comments.
///
/// # Errors
/// The file can't be read, or a line is not a recipient.
pub fn recipients_in(path: &Path) -> Result<Vec<x25519::Recipient>, EnvelopeError> {
    let failed = |reason: String| EnvelopeError::Input(format!("{}: {reason}", path.display()));
    let text = fs::read_to_string(path)
        .map_err(|error| failed(format!("can't read the recipients: {error}")))?;
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| recipient(line).map_err(|error| failed(error.to_string())))
        .collect()
}

/// An encrypted backup, and what decrypts it for verification.
pub(super) struct Sealed {
    pub(super) bytes: Vec<u8>,
    pub(super) proof: DecryptWith,
}

/// Encrypts `payload` for `encrypt_for`.
/// A one-time recipient is added to other recipients. Its identity exists only in memory, until the
/// file was read back and verified.
pub(super) fn seal(payload: &[u8], encrypt_for: &EncryptFor) -> Result<Sealed, EnvelopeError> {
    let (encryptor, proof) = match encrypt_for {
        EncryptFor::Passphrase(passphrase) => {
            if passphrase.0.expose_secret().chars().count() < MIN_PASSPHRASE {
                return Err(EnvelopeError::Weak);
            }
            let mut recipient = scrypt::Recipient::new(passphrase.0.clone());
            recipient.set_work_factor(WORK_FACTOR);
            let encryptor =
                Encryptor::with_recipients(iter::once(&recipient as &dyn age::Recipient));
            (
                encryptor,
                DecryptWith::Passphrase(Passphrase(passphrase.0.clone())),
            )
        }
        EncryptFor::Recipients(recipients) => {
            let once = x25519::Identity::generate();
            let all: Vec<_> = recipients
                .iter()
                .cloned()
                .chain(iter::once(once.to_public()))
                .collect();
            let encryptor = Encryptor::with_recipients(
                all.iter().map(|recipient| recipient as &dyn age::Recipient),
            );
            (encryptor, DecryptWith::Identities(vec![Box::new(once)]))
        }
    };
    let bytes = write(encryptor.map_err(EnvelopeError::Encrypt)?, payload);
    Ok(Sealed {
        bytes: bytes.map_err(|error| EnvelopeError::Encrypt(error.into()))?,
        proof,
    })
}

fn write(encryptor: Encryptor, payload: &[u8]) -> io::Result<Vec<u8>> {
    let mut writer = encryptor.wrap_output(Vec::new())?;
    writer.write_all(payload)?;
    writer.finish()
}

/// Decrypts a backup.
pub(super) fn open(
    bytes: &[u8],
    decrypt_with: &DecryptWith,
) -> Result<Zeroizing<Vec<u8>>, EnvelopeError> {
    let decryptor = Decryptor::new_buffered(bytes).map_err(EnvelopeError::Closed)?;
    let reader = match decrypt_with {
        DecryptWith::Passphrase(passphrase) => {
            let mut identity = scrypt::Identity::new(passphrase.0.clone());
            identity.set_max_work_factor(MAX_WORK_FACTOR);
            decryptor.decrypt(iter::once(&identity as &dyn age::Identity))
        }
        DecryptWith::Identities(identities) => decryptor.decrypt(
            identities
                .iter()
                .map(|identity| &**identity as &dyn age::Identity),
        ),
    };
    // A plaintext is shorter than its file, so the buffer is never reallocated and leaves no copy.
    let mut payload = Zeroizing::new(Vec::with_capacity(bytes.len()));
    reader
        .map_err(EnvelopeError::Closed)?
        .read_to_end(&mut payload)
        .map_err(EnvelopeError::Damaged)?;
    Ok(payload)
}
