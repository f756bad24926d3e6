//! KEKs encrypted with a passphrase: age files with one scrypt recipient (<https://c2sp.org/age>),
//! as `age -p` and `rage -p` write them.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use age::{DecryptError, Decryptor, secrecy::SecretString};

use crate::{
    backend::{ErrorKind, error::Failure},
    crypto::{KEY_LEN, SecretKey},
    files::{Allowed, PrivateFileError, read_at_most, read_private},
};

/// The first bytes of every age file.
const AGE_PREFIX: &[u8] = b"age-encryption.org/v1";
/// The highest accepted work factor, as a power of two: 1 GiB of memory for a few seconds. The
/// tools use 18.
const MAX_WORK_FACTOR: u8 = 20;
/// The length limit of a passphrase, in bytes.
const MAX_PASSPHRASE: usize = 4096;

pub(super) fn is_encrypted(bytes: &[u8]) -> bool {
    bytes.starts_with(AGE_PREFIX)
}

/// The file with the passphrase of all encrypted KEKs of a process.
///
/// The passphrase is read once and kept, because a pipe can be read only once. A regular file is
/// read again if the passphrase doesn't decrypt a KEK.
pub struct PassphraseFile {
    path: PathBuf,
    cached: Mutex<Option<SecretString>>,
}

impl PassphraseFile {
    /// The file is read when the first KEK needs it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            cached: Mutex::default(),
        }
    }

    fn decrypt(&self, encrypted: &[u8]) -> Result<SecretKey, Failure> {
        // Locked while reading: the first reader of a pipe gets all of it.
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let (passphrase, is_fresh) = match cached.as_ref() {
            Some(passphrase) => (passphrase.clone(), false),
            None => (cached.insert(read(&self.path)?).clone(), true),
        };
        drop(cached);
        let result = decrypt_with(encrypted, passphrase, &self.path);
        let may_have_changed = !is_fresh
            && self
                .path
                .metadata()
                .is_ok_and(|metadata| metadata.is_file());
        match result {
            Err(failure) if failure.kind == ErrorKind::Denied && may_have_changed => {
                let passphrase = read(&self.path)?;
                *self.cached.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(passphrase.clone());
                decrypt_with(encrypted, passphrase, &self.path)
            }
            result => result,
        }
    }
}

/// Decrypts the key in an encrypted file.
pub(super) fn decrypt(
    encrypted: &[u8],
    passphrase: Option<&PassphraseFile>,
) -> Result<SecretKey, Failure> {
    let passphrase = passphrase.ok_or_else(|| {
        let message = "the KEK is encrypted with a passphrase; set the file that contains it with \
                       `local.passphrase_file`, or for commands with --kek-passphrase-file";
        Failure::new(ErrorKind::Misconfigured, message)
    })?;
    passphrase.decrypt(encrypted)
}

fn decrypt_with(
    encrypted: &[u8],
    passphrase: SecretString,
    file: &Path,
) -> Result<SecretKey, Failure> {
    let decryptor = Decryptor::new(encrypted).map_err(|error| invalid_file(&error))?;
    if !decryptor.is_scrypt() {
        let message = "the age file is not encrypted with a passphrase; create it with `age -p`";
        return Err(Failure::new(ErrorKind::Misconfigured, message));
    }
    let mut identity = age::scrypt::Identity::new(passphrase);
    identity.set_max_work_factor(MAX_WORK_FACTOR);
    let plaintext = decryptor
        .decrypt(std::iter::once(&identity as &dyn age::Identity))
        .map_err(|error| explain(&error, file))?;
    let bytes = read_at_most(plaintext, KEY_LEN + 1).map_err(|error| invalid_file(&error))?;
    SecretKey::from_slice(&bytes).ok_or_else(|| {
        let length = if bytes.len() > KEY_LEN {
            "more".into()
        } else {
            bytes.len().to_string()
        };
        let message = format!("a KEK is {KEY_LEN} bytes long, but the file contains {length}");
        Failure::new(ErrorKind::Misconfigured, message)
    })
}

fn explain(error: &DecryptError, file: &Path) -> Failure {
    match error {
        DecryptError::ExcessiveWork { required, .. } => {
            let message = format!(
                "the work factor {required} exceeds the maximum of {MAX_WORK_FACTOR}; encrypt the \
                 KEK again with a lower one"
            );
            Failure::new(ErrorKind::Misconfigured, message)
        }
        DecryptError::DecryptionFailed
        | DecryptError::KeyDecryptionFailed
        | DecryptError::NoMatchingKeys => {
            let file = file.display();
            let message = format!("the passphrase in {file} does not decrypt this KEK");
            Failure::new(ErrorKind::Denied, message)
        }
        other => invalid_file(other),
    }
}

fn invalid_file(error: &dyn std::fmt::Display) -> Failure {
    let message = format!("the age file is incomplete or malformed: {error}");
    Failure::new(ErrorKind::Misconfigured, message)
}

/// Reads the passphrase, without the line break at its end. The path may be a pipe (`/dev/fd/3`).
fn read(path: &Path) -> Result<SecretString, Failure> {
    let what = "the passphrase (`local.passphrase_file`)";
    let bytes =
        read_private(path, what, Allowed::OwnerAndGroup, MAX_PASSPHRASE + 1).map_err(|error| {
            let kind = match &error {
                PrivateFileError::Unreadable { .. } => ErrorKind::Denied,
                PrivateFileError::Exposed { .. } => ErrorKind::Misconfigured,
            };
            Failure::new(kind, format!("{}: {error}", path.display()))
        })?;
    let path = path.display();
    let text = std::str::from_utf8(&bytes).map_err(|_| {
        let message = format!("the passphrase in {path} is not UTF-8");
        Failure::new(ErrorKind::Denied, message)
    })?;
    let line = text
        .strip_suffix('\n')
        .map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() {
        let message = format!("{path} contains no passphrase");
        Err(Failure::new(ErrorKind::Denied, message))
    } else if text.len() > MAX_PASSPHRASE {
        let message = format!("{path} is longer than {MAX_PASSPHRASE} bytes");
        Err(Failure::new(ErrorKind::Misconfigured, message))
    } else {
        Ok(SecretString::from(line.to_owned()))
    }
}
