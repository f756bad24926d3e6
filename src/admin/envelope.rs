//! The envelope of a backup: an age file (C2SP, <https://c2sp.org/age>), which `age` and `rage`
//! open, too.
//!
//! Plain data keys pass through here, between [`super::backup`]'s payload and the library.

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

/// scrypt's N is 2 to the power of this: 256 MiB and about a second, as `age` itself does it.
const WORK_FACTOR: u8 = 18;
/// The most that a file may ask of us: 4 GiB and about 16 seconds.
const MOST_WORK: u8 = 22;
/// A passphrase is long enough to stand against whoever has the file and time.
const SHORTEST_PASSPHRASE: usize = 12;

/// Why there is no envelope, or nothing in it for us.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// A passphrase that could be guessed.
    #[error(
        "the passphrase has fewer than {SHORTEST_PASSPHRASE} characters; make one with: openssl rand -base64 24"
    )]
    Weak,
    /// A file with recipients, identities or a passphrase.
    #[error("{0}")]
    Input(String),
    /// It doesn't open.
    #[error("it doesn't open: {0}")]
    Closed(DecryptError),
    /// It can't be made.
    #[error("can't encrypt: {0}")]
    Encrypt(EncryptError),
    /// It ends early, or was changed.
    #[error("it was changed or ends early: {0}")]
    Damaged(io::Error),
}

/// A passphrase.
pub struct Passphrase(SecretString);

impl Passphrase {
    /// The first line of a file, or of a descriptor as `/dev/fd/N`.
    ///
    /// # Errors
    /// The file can't be read, or by everybody; or the line is longer than a passphrase can be.
    pub fn from_file(path: &Path) -> Result<Self, EnvelopeError> {
        const LONGEST: usize = 4096;

        let wrong = |reason: String| EnvelopeError::Input(format!("{}: {reason}", path.display()));
        let bytes = read_private(path, "the passphrase", Allowed::OwnerAndGroup, LONGEST + 2)
            .map_err(|error| wrong(error.to_string()))?;
        let line = bytes
            .split(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > LONGEST {
            // Cut, it would open nothing elsewhere.
            return Err(wrong(format!(
                "the passphrase is longer than {LONGEST} bytes"
            )));
        }
        let text =
            std::str::from_utf8(line).map_err(|_| wrong("the passphrase is not UTF-8".into()))?;
        Ok(Self::new(text))
    }

    /// A passphrase that somebody typed.
    pub fn new(text: &str) -> Self {
        Self(SecretString::from(text))
    }

    /// Whether both are the same.
    pub fn equals(&self, other: &Self) -> bool {
        crate::crypto::equal_in_constant_time(
            self.0.expose_secret().as_bytes(),
            other.0.expose_secret().as_bytes(),
        )
    }
}

/// For whom a backup is encrypted.
pub enum Lock {
    /// Whoever knows a passphrase.
    Passphrase(Passphrase),
    /// Whoever holds the identity of one of these.
    Recipients(Vec<x25519::Recipient>),
}

/// What opens a backup.
pub enum Opener {
    /// A passphrase.
    Passphrase(Passphrase),
    /// The identities in a file.
    Identities(Vec<Box<dyn age::Identity + Send + Sync>>),
}

impl Opener {
    /// The identities in a file, as `age-keygen` writes it.
    ///
    /// # Errors
    /// It can't be read, or holds none.
    pub fn from_identity_file(path: &Path) -> Result<Self, EnvelopeError> {
        let failed = |reason: String| EnvelopeError::Input(format!("{}: {reason}", path.display()));
        let file = File::open(path)
            .map_err(|error| failed(format!("can't read the identity: {error}")))?;
        // The library's errors name lines, never what stands in them.
        let identities = IdentityFile::from_buffer(BufReader::new(file))
            .map_err(|error| failed(error.to_string()))?;
        let identities = identities
            .into_identities()
            .map_err(|error| failed(error.to_string()))?;
        if identities.is_empty() {
            return Err(failed("no identity is in it; age-keygen makes one".into()));
        }
        Ok(Self::Identities(identities))
    }
}

/// A recipient's public key, `age1…`.
///
/// # Errors
/// It is none of the kind that is supported.
pub fn recipient(text: &str) -> Result<x25519::Recipient, EnvelopeError> {
    text.trim().parse().map_err(|reason: &str| {
        EnvelopeError::Input(format!(
            "{:.12}… is not an X25519 recipient, age1… ({reason})",
            text.trim()
        ))
    })
}

/// The recipients in a file, one a line; empty lines and those that begin with # don't count.
///
/// # Errors
/// It can't be read, or a line is no recipient.
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

/// A file's bytes, and what opens it once to prove that it was written right.
pub(super) struct Sealed {
    pub(super) bytes: Vec<u8>,
    pub(super) proof: Opener,
}

/// Encrypts `payload` for whom `lock` says.
///
/// For recipients, one more is added whose identity lives in this process's memory alone, so that
/// the file can be read back and compared; it goes with the proof.
pub(super) fn seal(payload: &[u8], lock: &Lock) -> Result<Sealed, EnvelopeError> {
    let (encryptor, proof) = match lock {
        Lock::Passphrase(passphrase) => {
            if passphrase.0.expose_secret().chars().count() < SHORTEST_PASSPHRASE {
                return Err(EnvelopeError::Weak);
            }
            let mut recipient = scrypt::Recipient::new(passphrase.0.clone());
            recipient.set_work_factor(WORK_FACTOR);
            let encryptor =
                Encryptor::with_recipients(iter::once(&recipient as &dyn age::Recipient));
            (
                encryptor,
                Opener::Passphrase(Passphrase(passphrase.0.clone())),
            )
        }
        Lock::Recipients(recipients) => {
            let once = x25519::Identity::generate();
            let all: Vec<_> = recipients
                .iter()
                .cloned()
                .chain(iter::once(once.to_public()))
                .collect();
            let encryptor = Encryptor::with_recipients(
                all.iter().map(|recipient| recipient as &dyn age::Recipient),
            );
            (encryptor, Opener::Identities(vec![Box::new(once)]))
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

/// Opens a file.
pub(super) fn open(bytes: &[u8], opener: &Opener) -> Result<Zeroizing<Vec<u8>>, EnvelopeError> {
    let decryptor = Decryptor::new_buffered(bytes).map_err(EnvelopeError::Closed)?;
    let reader = match opener {
        Opener::Passphrase(passphrase) => {
            let mut identity = scrypt::Identity::new(passphrase.0.clone());
            identity.set_max_work_factor(MOST_WORK);
            decryptor.decrypt(iter::once(&identity as &dyn age::Identity))
        }
        Opener::Identities(identities) => decryptor.decrypt(
            identities
                .iter()
                .map(|identity| &**identity as &dyn age::Identity),
        ),
    };
    // A plaintext is shorter than its file, so the buffer never moves and leaves no copy behind.
    let mut payload = Zeroizing::new(Vec::with_capacity(bytes.len()));
    reader
        .map_err(EnvelopeError::Closed)?
        .read_to_end(&mut payload)
        .map_err(EnvelopeError::Damaged)?;
    Ok(payload)
}
