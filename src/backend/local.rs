//! `local:PATH`: a KEK in a file of this machine, for development and tests. Whoever reads the file opens every wrap, unless it is
//! encrypted with a passphrase.

mod passphrase;

pub use passphrase::PassphraseFile;

use std::{
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared};

use super::{Kek, KekError, KekFault, lane::Lane};
use crate::{
    crypto::{Dek, KEY_LEN, SecretKey, WrapContext, unwrap_dek, wrap_dek},
    files::{self, Allowed, PrivateFileError, open_private, read_at_most},
};

/// No file with a KEK is longer, in bytes.
const LONGEST: usize = 4096;

/// A KEK in a file. It is read for every use and kept in memory for none, but for one with a passphrase: that is kept as long as
/// its file stays the same, because opening it takes a second on purpose.
pub struct LocalKek {
    path: PathBuf,
    passphrase: Option<Arc<PassphraseFile>>,
    opened: Arc<Mutex<Option<Opened>>>,
    /// The read that is under way. Who asks meanwhile, as every version of every keyring does at a start, gets what it gives.
    reading: Mutex<Option<WeakShared<Reading>>>,
    lane: Lane,
}

type Reading = BoxFuture<'static, Result<Arc<SecretKey>, KekError>>;

/// What an encrypted file held.
struct Opened {
    file: Stamp,
    key: Arc<SecretKey>,
}

/// What changes when a file is written or another one takes its place.
#[derive(PartialEq, Eq)]
struct Stamp {
    inode: u64,
    seconds: i64,
    nanoseconds: i64,
    length: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
        Self {
            inode: metadata.ino(),
            seconds,
            nanoseconds,
            length: metadata.size(),
        }
    }
}

impl LocalKek {
    /// The KEK in the file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let (opened, reading) = (Arc::default(), Mutex::default());
        Self {
            path: path.into(),
            passphrase: None,
            opened,
            reading,
            lane: Lane::new(1),
        }
    }

    /// The same, whose passphrase, if it has one, is that of `file`, which it shares with others.
    #[must_use]
    pub fn with_passphrase(self, file: Option<Arc<PassphraseFile>>) -> Self {
        Self {
            passphrase: file,
            ..self
        }
    }

    fn load(&self) -> Shared<Reading> {
        let mut under_way = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reading) = under_way.as_ref().and_then(WeakShared::upgrade) {
            return reading;
        }
        let (path, passphrase, opened) = (
            self.path.clone(),
            self.passphrase.clone(),
            Arc::clone(&self.opened),
        );
        let lane = self.lane.clone();
        let read = async move {
            lane.run(move || load(&path, passphrase.as_deref(), &opened))
                .await
        };
        let reading = (Box::pin(read) as Reading).shared();
        *under_way = reading.downgrade();
        reading
    }

    /// Makes a new KEK of 32 random bytes in a file that nobody else can read.
    ///
    /// # Errors
    /// There is a file already, or it can't be written.
    pub fn create(path: &Path) -> Result<(), KekError> {
        let failed = |error: io::Error| {
            KekError::new(
                KekFault::Misconfigured,
                format!("local:{}: can't make a KEK: {error}", path.display()),
            )
        };
        let key = SecretKey::generate()
            .map_err(|error| KekError::new(KekFault::Unavailable, error.to_string()))?;
        files::create_private(path, key.expose()).map_err(failed)
    }
}

fn load(
    path: &Path,
    passphrase: Option<&PassphraseFile>,
    opened: &Mutex<Option<Opened>>,
) -> Result<Arc<SecretKey>, KekError> {
    let failed =
        |fault, reason: String| KekError::new(fault, format!("local:{}: {reason}", path.display()));
    let unreadable = |error: io::Error| {
        let fault = match error.kind() {
            io::ErrorKind::NotFound => KekFault::Missing,
            io::ErrorKind::PermissionDenied => KekFault::Denied,
            _ => KekFault::Unavailable,
        };
        failed(fault, format!("can't read the KEK: {error}"))
    };
    let (file, metadata) =
        open_private(path, "the KEK", Allowed::Owner).map_err(|error| match error {
            PrivateFileError::Unreadable { error, .. } => unreadable(error),
            exposed => failed(KekFault::Misconfigured, exposed.to_string()),
        })?;
    let bytes = read_at_most(file, LONGEST + 1).map_err(unreadable)?;
    if !passphrase::is_encrypted(&bytes) {
        let key = SecretKey::from_slice(&bytes).map(Arc::new);
        return key.ok_or_else(|| {
            let how = format!(
                "a local KEK is {KEY_LEN} bytes long; make one with: (umask 077; head -c {KEY_LEN} /dev/urandom > FILE), or, \
                 with a passphrase: (umask 077; head -c {KEY_LEN} /dev/urandom | age -p > FILE)"
            );
            failed(KekFault::Misconfigured, how)
        });
    }
    let mut opened = opened.lock().unwrap_or_else(PoisonError::into_inner);
    let stamp = Stamp::of(&metadata);
    if let Some(opened) = opened.as_ref().filter(|opened| opened.file == stamp) {
        return Ok(Arc::clone(&opened.key));
    }
    let key =
        passphrase::open(&bytes, passphrase).map_err(|(fault, reason)| failed(fault, reason))?;
    let key = Arc::new(key);
    *opened = Some(Opened {
        file: stamp,
        key: Arc::clone(&key),
    });
    Ok(key)
}

impl Kek for LocalKek {
    fn wrap<'a>(
        &'a self,
        dek: &'a Dek,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Vec<u8>, KekError>> {
        Box::pin(async move {
            let kek = self.load().await?;
            wrap_dek(&kek, dek, context)
                .map_err(|error| KekError::new(KekFault::Unavailable, error.to_string()))
        })
    }

    fn unwrap<'a>(
        &'a self,
        wrap: &'a [u8],
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Dek, KekError>> {
        Box::pin(async move {
            let kek = self.load().await?;
            let refused = || {
                let path = self.path.display();
                let reason = format!(
                    "local:{path}: this KEK doesn't open the wrap: it is another key, or the wrap was changed"
                );
                KekError::new(KekFault::Refused, reason)
            };
            unwrap_dek(&kek, wrap, context).ok_or_else(refused)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::crypto::KeyringId;

    const CONTEXT: WrapContext = WrapContext {
        keyring: KeyringId([7; 16]),
        version: 3,
    };

    #[tokio::test]
    async fn opens_what_it_wrapped_and_refuses_files_that_are_no_private_keks() {
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

        let message = |result: Result<Dek, KekError>| result.err().expect("refused").to_string();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(message(kek.unwrap(&wrap, CONTEXT).await).contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        std::fs::write(&path, [1; 33]).expect("write");
        assert!(message(kek.unwrap(&wrap, CONTEXT).await).contains("32 bytes long"));
        std::fs::write(&path, [1; 32]).expect("write");
        assert!(message(kek.unwrap(&wrap, CONTEXT).await).contains("another key"));
        std::fs::remove_file(&path).expect("remove");
        assert!(message(kek.unwrap(&wrap, CONTEXT).await).contains("can't read the KEK"));
    }

    /// What `age -p` writes, but with little work.
    fn encrypted(passphrase: &str, key: &[u8]) -> Vec<u8> {
        let mut recipient = age::scrypt::Recipient::new(passphrase.to_owned().into());
        recipient.set_work_factor(2);
        age::encrypt(&recipient, key).expect("encrypted")
    }

    #[tokio::test]
    async fn a_passphrase_opens_a_kek_once_for_as_long_as_its_file_stays() {
        let folder = tempfile::tempdir().expect("folder");
        let (path, passphrase) = (folder.path().join("kek"), folder.path().join("passphrase"));
        let write = |path: &Path, bytes: &[u8]| {
            std::fs::write(path, bytes).expect("write");
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        };
        write(&path, &encrypted("correct horse", &[7; 32]));
        let message = |result: Result<Vec<u8>, KekError>| result.expect_err("refused").to_string();
        let dek = Dek::generate().expect("random");
        let without = LocalKek::new(&path);
        assert!(message(without.wrap(&dek, CONTEXT).await).contains("local.passphrase_file"));

        let kek =
            LocalKek::new(&path).with_passphrase(Some(Arc::new(PassphraseFile::new(&passphrase))));
        assert!(message(kek.wrap(&dek, CONTEXT).await).contains("can't read"));
        write(&passphrase, b"battery staple\n");
        assert!(message(kek.wrap(&dek, CONTEXT).await).contains("doesn't open"));
        write(&passphrase, b"correct horse\n");
        std::fs::set_permissions(&passphrase, std::fs::Permissions::from_mode(0o644))
            .expect("chmod");
        assert!(message(kek.wrap(&dek, CONTEXT).await).contains("chmod o="));
        write(&passphrase, b"correct horse\n");
        let wrap = kek.wrap(&dek, CONTEXT).await.expect("wrap");
        // As a pipe would be, read once.
        std::fs::remove_file(&passphrase).expect("remove");
        assert_eq!(
            kek.unwrap(&wrap, CONTEXT).await.expect("unwrap").expose(),
            dek.expose()
        );

        // The key is the 32 bytes within, so that a file may be encrypted later, or no more.
        write(&folder.path().join("raw"), &[7; 32]);
        let raw = LocalKek::new(folder.path().join("raw"));
        assert_eq!(
            raw.unwrap(&wrap, CONTEXT).await.expect("unwrap").expose(),
            dek.expose()
        );

        write(&passphrase, b"correct horse");
        write(&path, &encrypted("correct horse", &[8; 31]));
        assert!(message(kek.wrap(&dek, CONTEXT).await).contains("holds 31"));
    }
}
