//! `local:PATH`: a KEK in a local file, for development and tests. Anyone who can read the file can
//! unwrap every data key, unless the file is encrypted with a passphrase.

mod passphrase;

use std::{
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared};

pub use self::passphrase::PassphraseFile;

use super::{BackendError, ErrorKind, Kek, error::Failure};
use crate::{
    crypto::{Dek, KEY_LEN, SecretKey, WrapContext, unwrap_dek, wrap_dek},
    files::{self, Allowed, BlockingPool, PrivateFileError, open_private, read_at_most},
};

/// The size limit of a KEK's file, in bytes.
const MAX_FILE: usize = 4096;

/// A KEK in a file.
///
/// A plain file is read for each use, and the key is not kept in memory. The key of an encrypted
/// file is kept until the file changes, because decrypting it takes a second by design.
pub struct LocalKek {
    path: PathBuf,
    passphrase: Option<Arc<PassphraseFile>>,
    decrypted: Arc<Mutex<Option<DecryptedFile>>>,
    /// The read in progress. Concurrent callers share it, as all versions of a keyring do at start.
    read: Mutex<Option<WeakShared<KeyRead>>>,
    pool: BlockingPool,
}

type KeyRead = BoxFuture<'static, Result<Arc<SecretKey>, BackendError>>;

/// The key in an encrypted file.
struct DecryptedFile {
    stamp: FileStamp,
    key: Arc<SecretKey>,
}

/// Changes when the file is written or replaced.
#[derive(PartialEq, Eq)]
struct FileStamp {
    inode: u64,
    seconds: i64,
    nanoseconds: i64,
    length: u64,
}

impl FileStamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            seconds: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
            length: metadata.size(),
        }
    }
}

impl LocalKek {
    /// The KEK in the file at `path`, which is read at each use.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            passphrase: None,
            decrypted: Arc::default(),
            read: Mutex::default(),
            pool: BlockingPool::new(1),
        }
    }

    /// Sets the file with the passphrase, which several KEKs may share.
    #[must_use]
    pub fn with_passphrase(self, file: Option<Arc<PassphraseFile>>) -> Self {
        Self {
            passphrase: file,
            ..self
        }
    }

    fn load(&self) -> Shared<KeyRead> {
        let mut in_progress = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = in_progress.as_ref().and_then(WeakShared::upgrade) {
            return read;
        }
        let (path, passphrase, decrypted) = (
            self.path.clone(),
            self.passphrase.clone(),
            Arc::clone(&self.decrypted),
        );
        let pool = self.pool.clone();
        let read = async move {
            pool.run(move || {
                load(&path, passphrase.as_deref(), &decrypted)
                    .map_err(|failure| on_file(failure, &path))
            })
            .await
        };
        let read = (Box::pin(read) as KeyRead).shared();
        *in_progress = read.downgrade();
        read
    }

    /// Creates a KEK: a file with 32 random bytes that only its owner can read.
    ///
    /// # Errors
    /// Fails if the file exists or can't be written.
    pub fn create(path: &Path) -> Result<(), BackendError> {
        let error = |kind, message| on_file(Failure::new(kind, message), path);
        let key = SecretKey::generate()
            .map_err(|failed| error(ErrorKind::Unavailable, failed.to_string()))?;
        files::create_private(path, key.expose()).map_err(|failed| {
            let message = format!("can't create the KEK: {failed}");
            error(ErrorKind::Misconfigured, message)
        })
    }
}

fn on_file(failure: Failure, path: &Path) -> BackendError {
    failure.on(format_args!("local:{}", path.display()))
}

fn load(
    path: &Path,
    passphrase: Option<&PassphraseFile>,
    decrypted: &Mutex<Option<DecryptedFile>>,
) -> Result<Arc<SecretKey>, Failure> {
    let (file, metadata) =
        open_private(path, "the KEK", Allowed::Owner).map_err(|error| match error {
            PrivateFileError::Unreadable { error, .. } => unreadable(&error),
            exposed => Failure::new(ErrorKind::Misconfigured, exposed.to_string()),
        })?;
    let bytes = read_at_most(file, MAX_FILE + 1).map_err(|error| unreadable(&error))?;
    if !passphrase::is_encrypted(&bytes) {
        return SecretKey::from_slice(&bytes).map(Arc::new).ok_or_else(|| {
            let message = format!(
                "a local KEK is {KEY_LEN} bytes long; create one with: \
                 (umask 077; head -c {KEY_LEN} /dev/urandom > FILE), or, with a passphrase: \
                 (umask 077; head -c {KEY_LEN} /dev/urandom | age -p > FILE)"
            );
            Failure::new(ErrorKind::Misconfigured, message)
        });
    }
    let mut decrypted = decrypted.lock().unwrap_or_else(PoisonError::into_inner);
    let stamp = FileStamp::of(&metadata);
    if let Some(decrypted) = decrypted.as_ref().filter(|file| file.stamp == stamp) {
        return Ok(Arc::clone(&decrypted.key));
    }
    let key = Arc::new(passphrase::decrypt(&bytes, passphrase)?);
    *decrypted = Some(DecryptedFile {
        stamp,
        key: Arc::clone(&key),
    });
    Ok(key)
}

fn unreadable(error: &io::Error) -> Failure {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    };
    Failure::new(kind, format!("can't read the KEK: {error}"))
}

impl Kek for LocalKek {
    fn wrap<'a>(
        &'a self,
        dek: &'a Dek,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Vec<u8>, BackendError>> {
        Box::pin(async move {
            let kek = self.load().await?;
            wrap_dek(&kek, dek, context).map_err(|error| {
                let failure = Failure::new(ErrorKind::Unavailable, error.to_string());
                on_file(failure, &self.path)
            })
        })
    }

    fn unwrap<'a>(
        &'a self,
        wrap: &'a [u8],
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Dek, BackendError>> {
        Box::pin(async move {
            let kek = self.load().await?;
            unwrap_dek(&kek, wrap, context).ok_or_else(|| {
                let message =
                    "the key cannot decrypt the wrap: another key made it, or it was modified";
                on_file(Failure::new(ErrorKind::Rejected, message), &self.path)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::crypto::KeyringId;

    const CONTEXT: WrapContext = WrapContext {
        keyring: KeyringId([7; 16]),
        version: 3,
    };

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    #[tokio::test]
    async fn unwraps_its_own_wraps_and_rejects_files_that_are_not_private_keks() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("kek");
        LocalKek::create(&path).expect("create");
        LocalKek::create(&path).expect_err("never overwrites");
        let kek = LocalKek::new(&path);
        let dek = Dek::generate().expect("random");
        let wrap = kek.wrap(&dek, CONTEXT).await.expect("wrap");
        assert_eq!(
            kek.unwrap(&wrap, CONTEXT).await.expect("unwrap").expose(),
            dek.expose()
        );

        let message =
            |result: Result<Dek, BackendError>| result.err().expect("rejected").to_string();
        set_mode(&path, 0o640);
        assert!(message(kek.unwrap(&wrap, CONTEXT).await).contains("chmod 600"));
        set_mode(&path, 0o600);
        fs::write(&path, [1; 33]).expect("write");
        assert!(message(kek.unwrap(&wrap, CONTEXT).await).contains("32 bytes long"));
        fs::write(&path, [1; 32]).expect("write");
        assert!(message(kek.unwrap(&wrap, CONTEXT).await).contains("another key"));
        fs::remove_file(&path).expect("remove");
        assert!(message(kek.unwrap(&wrap, CONTEXT).await).contains("can't read the KEK"));
    }

    /// Encrypts like `age -p`, but with a low work factor.
    fn encrypted(passphrase: &str, key: &[u8]) -> Vec<u8> {
        let mut recipient = age::scrypt::Recipient::new(passphrase.to_owned().into());
        recipient.set_work_factor(2);
        age::encrypt(&recipient, key).expect("encrypted")
    }

    #[tokio::test]
    async fn an_encrypted_kek_is_decrypted_once_until_its_file_changes() {
        let folder = tempfile::tempdir().expect("folder");
        let (path, passphrase) = (folder.path().join("kek"), folder.path().join("passphrase"));
        let write = |path: &Path, bytes: &[u8]| {
            fs::write(path, bytes).expect("write");
            set_mode(path, 0o600);
        };
        write(&path, &encrypted("correct horse", &[7; 32]));
        let message =
            |result: Result<Vec<u8>, BackendError>| result.expect_err("rejected").to_string();
        let dek = Dek::generate().expect("random");
        let without = LocalKek::new(&path);
        assert!(message(without.wrap(&dek, CONTEXT).await).contains("local.passphrase_file"));

        let kek =
            LocalKek::new(&path).with_passphrase(Some(Arc::new(PassphraseFile::new(&passphrase))));
        assert!(message(kek.wrap(&dek, CONTEXT).await).contains("can't read"));
        write(&passphrase, b"battery staple\n");
        assert!(message(kek.wrap(&dek, CONTEXT).await).contains("does not decrypt"));
        write(&passphrase, b"correct horse\n");
        set_mode(&passphrase, 0o644);
        assert!(message(kek.wrap(&dek, CONTEXT).await).contains("chmod o="));
        write(&passphrase, b"correct horse\n");
        let wrap = kek.wrap(&dek, CONTEXT).await.expect("wrap");
        // Like a pipe, which can be read once.
        fs::remove_file(&passphrase).expect("remove");
        assert_eq!(
            kek.unwrap(&wrap, CONTEXT).await.expect("unwrap").expose(),
            dek.expose()
        );

        // The key is the 32 bytes inside, so a file can be encrypted or decrypted later.
        write(&folder.path().join("raw"), &[7; 32]);
        let raw = LocalKek::new(folder.path().join("raw"));
        assert_eq!(
            raw.unwrap(&wrap, CONTEXT).await.expect("unwrap").expose(),
            dek.expose()
        );

        write(&passphrase, b"correct horse");
        write(&path, &encrypted("correct horse", &[8; 31]));
        assert!(message(kek.wrap(&dek, CONTEXT).await).contains("contains 31"));
    }
}
