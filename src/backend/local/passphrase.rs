//! KEKs encrypted with a passphrase: age files with one scrypt recipient (<https://c2sp.org/age>), as `age -p` and `rage -p` write them.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use age::{Decryptor, secrecy::SecretString};
use zeroize::Zeroizing;

use crate::{
    backend::KekFault,
    crypto::{KEY_LEN, SecretKey},
    files::{Allowed, PrivateFileError, read_private},
};

/// How every age file begins.
const BEGINNING: &[u8] = b"age-encryption.org/v1";
/// 2 to this is the most work that a file may ask for: 1 GiB of memory for some seconds. The tools' own choice is 18.
const GREATEST_WORK: u8 = 20;
/// No passphrase is longer, in bytes.
const LONGEST: usize = 4096;

pub(super) fn is_encrypted(bytes: &[u8]) -> bool {
    bytes.starts_with(BEGINNING)
}

/// The passphrase of all encrypted KEKs of a process, in a file. It is read once and kept, because a pipe gives it once; a file
/// proper is read again when what is kept doesn't open a KEK.
pub struct PassphraseFile {
    path: PathBuf,
    kept: Mutex<Option<SecretString>>,
}

impl PassphraseFile {
    /// The passphrase in the file at `path`. It is read when the first KEK needs it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            kept: Mutex::default(),
        }
    }

    /// The key in an encrypted file.
    fn open(&self, encrypted: &[u8]) -> Result<SecretKey, (KekFault, String)> {
        // Whoever comes meanwhile waits: the first reader of a pipe gets all of it.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (passphrase, is_fresh) = match kept.as_ref() {
            Some(passphrase) => (passphrase.clone(), false),
            None => (kept.insert(read(&self.path)?).clone(), true),
        };
        drop(kept);
        let result = decrypt(encrypted, passphrase, &self.path);
        let may_have_changed = !is_fresh
            && self
                .path
                .metadata()
                .is_ok_and(|metadata| metadata.is_file());
        match result {
            Err((KekFault::Denied, _)) if may_have_changed => {
                let passphrase = read(&self.path)?;
                *self.kept.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(passphrase.clone());
                decrypt(encrypted, passphrase, &self.path)
            }
            result => result,
        }
    }
}

/// The key in an encrypted file.
pub(super) fn open(
    encrypted: &[u8],
    passphrase: Option<&PassphraseFile>,
) -> Result<SecretKey, (KekFault, String)> {
    let passphrase = passphrase.ok_or_else(|| {
        let how = "name the file that holds it: `local.passphrase_file` in the config, for commands also --kek-passphrase-file";
        (KekFault::Misconfigured, format!("this KEK is encrypted with a passphrase; {how}"))
    })?;
    passphrase.open(encrypted)
}

fn decrypt(
    encrypted: &[u8],
    passphrase: SecretString,
    file: &Path,
) -> Result<SecretKey, (KekFault, String)> {
    let broken = |error: &dyn std::fmt::Display| {
        (
            KekFault::Misconfigured,
            format!("this is no whole age file: {error}"),
        )
    };
    let decryptor = Decryptor::new(encrypted).map_err(|error| broken(&error))?;
    if !decryptor.is_scrypt() {
        return Err((
            KekFault::Misconfigured,
            "this age file is not encrypted with a passphrase; make it with `age -p`".into(),
        ));
    }
    let mut identity = age::scrypt::Identity::new(passphrase);
    identity.set_max_work_factor(GREATEST_WORK);
    let mut plaintext = decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity)).map_err(|error| match error {
        age::DecryptError::ExcessiveWork { required, .. } => {
            let reason =
                format!("its work factor is {required}, and the greatest that is taken is {GREATEST_WORK}; encrypt it anew");
            (KekFault::Misconfigured, reason)
        }
        age::DecryptError::DecryptionFailed | age::DecryptError::KeyDecryptionFailed | age::DecryptError::NoMatchingKeys => {
            (KekFault::Denied, format!("the passphrase in {} doesn't open this KEK", file.display()))
        }
        other => broken(&other),
    })?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_LEN + 1));
    plaintext
        .by_ref()
        .take(KEY_LEN as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| broken(&error))?;
    let wrong_length = || {
        let held = if bytes.len() > KEY_LEN {
            "more".into()
        } else {
            bytes.len().to_string()
        };
        (
            KekFault::Misconfigured,
            format!("a KEK is {KEY_LEN} bytes long, and the file holds {held}"),
        )
    };
    SecretKey::from_slice(&bytes).ok_or_else(wrong_length)
}

/// The passphrase in a file, without the end of its line. A pipe (`/dev/fd/3`) will do, for it is read once.
fn read(path: &Path) -> Result<SecretString, (KekFault, String)> {
    let what = "the passphrase (`local.passphrase_file`)";
    let bytes = read_private(path, what, Allowed::OwnerAndGroup, LONGEST + 1).map_err(|error| {
        let fault = match &error {
            PrivateFileError::Unreadable { .. } => KekFault::Denied,
            PrivateFileError::Exposed { .. } => KekFault::Misconfigured,
        };
        (fault, format!("{}: {error}", path.display()))
    })?;
    let text = std::str::from_utf8(&bytes).map_err(|_| {
        let reason = format!("the passphrase in {} is not UTF-8", path.display());
        (KekFault::Denied, reason)
    })?;
    match text
        .strip_suffix('\n')
        .map_or(text, |line| line.strip_suffix('\r').unwrap_or(line))
    {
        "" => Err((
            KekFault::Denied,
            format!("there is no passphrase in {}", path.display()),
        )),
        _ if text.len() > LONGEST => Err((
            KekFault::Misconfigured,
            format!("{} is too long", path.display()),
        )),
        passphrase => Ok(SecretString::from(passphrase.to_owned())),
    }
}
