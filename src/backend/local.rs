//! `local:PATH`: a KEK in a file of this machine, for development and tests. Whoever reads the file opens every wrap.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{Kek, KekError, KekFault, Pending, lane::Lane};
use crate::crypto::{Dek, KEY_LEN, SecretKey, WrapContext, unwrap_dek, wrap_dek};

/// How many reads of the file are under way at once.
const WIDTH: usize = 4;

/// A KEK in a file. It is read for every use and kept in memory for none.
pub struct LocalKek {
    path: PathBuf,
    lane: Lane,
}

impl LocalKek {
    /// The KEK in the file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), lane: Lane::new(WIDTH) }
    }

    /// Makes a new KEK of 32 random bytes in a file that nobody else can read.
    ///
    /// # Errors
    /// There is a file already, or it can't be written.
    pub fn create(path: &Path) -> Result<(), KekError> {
        let failed = |error: io::Error| {
            KekError::new(KekFault::Misconfigured, format!("local:{}: can't make a KEK: {error}", path.display()))
        };
        let key = SecretKey::generate().map_err(|error| KekError::new(KekFault::Unavailable, error.to_string()))?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        file.write_all(key.expose()).and_then(|()| file.sync_all()).map_err(failed)
    }
}

fn load(path: &Path) -> Result<SecretKey, KekError> {
    let failed = |fault, reason: String| KekError::new(fault, format!("local:{}: {reason}", path.display()));
    let unreadable = |error: io::Error| {
        let fault = match error.kind() {
            io::ErrorKind::NotFound => KekFault::Missing,
            io::ErrorKind::PermissionDenied => KekFault::Denied,
            _ => KekFault::Unavailable,
        };
        failed(fault, format!("can't read the KEK: {error}"))
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(failed(
            KekFault::Misconfigured,
            format!("others can open this KEK (mode {mode:04o}); run: chmod 600 {}", path.display()),
        ));
    }
    let wrong_length = || {
        let how =
            format!("a local KEK is {KEY_LEN} bytes long; make one with: (umask 077; head -c {KEY_LEN} /dev/urandom > FILE)");
        failed(KekFault::Misconfigured, how)
    };
    if metadata.len() != KEY_LEN as u64 {
        return Err(wrong_length());
    }
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    file.read_exact(bytes.as_mut_slice()).map_err(unreadable)?;
    SecretKey::from_slice(bytes.as_slice()).ok_or_else(wrong_length)
}

impl Kek for LocalKek {
    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> Pending<'a, Result<Vec<u8>, KekError>> {
        let path = self.path.clone();
        Box::pin(async move {
            let kek = self.lane.run(move || load(&path)).await?;
            wrap_dek(&kek, dek, context).map_err(|error| KekError::new(KekFault::Unavailable, error.to_string()))
        })
    }

    fn unwrap<'a>(&'a self, wrap: &'a [u8], context: WrapContext) -> Pending<'a, Result<Dek, KekError>> {
        let path = self.path.clone();
        Box::pin(async move {
            let kek = self.lane.run(move || load(&path)).await?;
            let refused = || {
                let path = self.path.display();
                let reason = format!("local:{path}: this KEK doesn't open the wrap: it is another key, or the wrap was changed");
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

    const CONTEXT: WrapContext = WrapContext { keyring: KeyringId([7; 16]), version: 3 };

    #[tokio::test]
    async fn opens_what_it_wrapped_and_refuses_files_that_are_no_private_keks() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("kek");
        LocalKek::create(&path).expect("create");
        LocalKek::create(&path).expect_err("never overwrites");
        let kek = LocalKek::new(&path);
        let dek = Dek::generate().expect("random");
        let wrap = kek.wrap(&dek, CONTEXT).await.expect("wrap");
        assert_eq!(kek.unwrap(&wrap, CONTEXT).await.expect("unwrap").expose(), dek.expose());

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
}
