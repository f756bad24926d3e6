//! `file:PATH`: a secret in a file, or a folder of files as one JSON object: what Kubernetes and others mount.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, ErrorKind, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::sleep;
use zeroize::Zeroizing;

use super::{folder_of, watcher};
use crate::backend::{
    Answer, Changed, Fetched, Held, SecretError, SecretFault, SecretProvider, WatchGuard, Which,
    lane::Lane,
};

/// A secret on this machine. There is one value of it, and the file's time of modification is its version.
#[derive(Clone)]
pub(in crate::backend) struct FileSecret {
    path: PathBuf,
    lane: Lane,
}

/// A file that was written to within this time may not be whole yet.
const SETTLED: Duration = Duration::from_millis(300);
/// How often that is waited for. Something that is written to all the time is no secret's file.
const WAITS: u32 = 10;

/// A value as it was found.
struct Found {
    bytes: Zeroizing<Vec<u8>>,
    modified: Timestamp,
    /// Whether all of it came into place at once, as Kubernetes does it.
    is_of_an_instant: bool,
}

impl FileSecret {
    pub(in crate::backend) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            lane: Lane::new(1),
        }
    }

    fn failed(&self, what: &str, error: &io::Error) -> SecretError {
        let path = self.path.display();
        match error.kind() {
            ErrorKind::NotFound => SecretError::new(
                SecretFault::NotFound,
                format!("file:{path}: there is no such file"),
            ),
            ErrorKind::PermissionDenied => {
                let how = "let this user in, by owner, group or mode of the file and its folders";
                SecretError::new(
                    SecretFault::Denied,
                    format!("file:{path}: {what}: {error}; {how}"),
                )
            }
            _ => SecretError::new(
                SecretFault::Unavailable,
                format!("file:{path}: {what}: {error}"),
            ),
        }
    }

    /// What stands there once nobody writes to it any more, as far as its times tell: whoever writes in place leaves a part for a moment.
    async fn settled(&self, held: Option<Held<'_>>, limit: usize) -> Result<Found, SecretError> {
        let mut waits = 0;
        loop {
            let secret = self.clone();
            let found = self.lane.run(move || secret.find(limit)).await?;
            let is_held = held.is_some_and(|held| *held.bytes == **found.bytes);
            let age = Timestamp::now().duration_since(found.modified);
            let rest = Duration::try_from(age)
                .ok()
                .and_then(|age| SETTLED.checked_sub(age))
                .filter(|rest| !rest.is_zero());
            match rest.filter(|_| !is_held && !found.is_of_an_instant && waits < WAITS) {
                Some(rest) => sleep(rest).await,
                None => return Ok(found),
            }
            waits += 1;
        }
    }

    fn find(&self, limit: usize) -> Result<Found, SecretError> {
        let failed = |error| self.failed("can't read it", &error);
        let metadata = fs::metadata(&self.path).map_err(failed)?;
        let found = if metadata.is_dir() {
            self.folder(limit)?
        } else {
            self.file(&self.path, limit)?
        };
        if found.bytes.is_empty() {
            // Whoever writes a file in place leaves it empty for a moment.
            let message = format!(
                "file:{}: it is empty; write a new file beside it and rename that",
                self.path.display()
            );
            return Err(SecretError::new(SecretFault::Unavailable, message));
        }
        Ok(found)
    }

    fn file(&self, path: &Path, limit: usize) -> Result<Found, SecretError> {
        let failed = |error| self.failed("can't read it", &error);
        let mut file = File::open(path).map_err(failed)?;
        // All at once, for a buffer that grows leaves copies behind.
        let length = usize::try_from(file.metadata().map_err(failed)?.len())
            .unwrap_or(usize::MAX)
            .min(limit);
        let mut bytes = Zeroizing::new(Vec::with_capacity(length + 1));
        (&mut file)
            .take(limit as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() > limit {
            return Err(self.too_long(limit));
        }
        // Only now, so that no write falls between the two unseen.
        let modified = file
            .metadata()
            .and_then(|metadata| metadata.modified())
            .map_err(failed)?;
        let modified = Timestamp::try_from(modified).unwrap_or(Timestamp::UNIX_EPOCH);
        // Through the link that Kubernetes swaps.
        let real = fs::canonicalize(path).unwrap_or_default();
        let folder = real.parent().and_then(Path::file_name);
        let is_of_an_instant =
            folder.is_some_and(|folder| folder.as_encoded_bytes().starts_with(b".."));
        Ok(Found {
            bytes,
            modified,
            is_of_an_instant,
        })
    }

    /// The files of a folder, as Kubernetes mounts a Secret: what begins with a dot is its own, and `..data` leads to all the files of
    /// one instant.
    fn folder(&self, limit: usize) -> Result<Found, SecretError> {
        let failed = |error| self.failed("can't read it", &error);
        let instant =
            fs::canonicalize(self.path.join("..data")).unwrap_or_else(|_| self.path.clone());
        let (mut members, mut modified, mut length) = (BTreeMap::new(), Timestamp::UNIX_EPOCH, 0);
        for entry in fs::read_dir(&instant).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let Some(name) = path
                .file_name()
                .and_then(|name| name.to_str())
                .filter(|name| !name.starts_with('.'))
            else {
                continue;
            };
            if fs::metadata(&path).map_err(failed)?.is_dir() {
                continue;
            }
            let found = self.file(&path, limit)?;
            length += name.len() + found.bytes.len();
            if length > limit {
                return Err(self.too_long(limit));
            }
            let not_text = |_| {
                let message = format!(
                    "{}: it is not text; make it a secret of its own",
                    path.display()
                );
                SecretError::new(SecretFault::Misconfigured, message)
            };
            let text = Zeroizing::new(
                std::str::from_utf8(&found.bytes)
                    .map_err(not_text)?
                    .to_owned(),
            );
            modified = modified.max(found.modified);
            members.insert(name.to_owned(), text);
        }
        if members.is_empty() {
            let message = format!("file:{}: the folder has no files", self.path.display());
            return Err(SecretError::new(SecretFault::NotFound, message));
        }
        let members: BTreeMap<&str, &str> = members
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()))
            .collect();
        // Escaped, a character takes six at most.
        let mut bytes = Zeroizing::new(Vec::with_capacity(6 * (length + 8 * members.len())));
        serde_json::to_writer(&mut *bytes, &members).map_err(|error| failed(error.into()))?;
        Ok(Found {
            bytes,
            modified,
            is_of_an_instant: instant != self.path,
        })
    }

    fn too_long(&self, limit: usize) -> SecretError {
        let message = format!(
            "file:{}: longer than {limit} bytes (`secrets.value_bytes`)",
            self.path.display()
        );
        SecretError::new(SecretFault::TooLong, message)
    }

    fn watch_now(&self, changed: &Changed) -> Result<WatchGuard, SecretError> {
        let failed = |error: notify::Error| {
            let message = format!(
                "file:{}: can't watch its folder: {error}",
                self.path.display()
            );
            SecretError::new(SecretFault::Unavailable, message)
        };
        let subscribe = |path: &Path| {
            if path.is_dir() {
                return watcher::subscribe(path, None, Arc::clone(changed)).map_err(failed);
            }
            let name = path.file_name().unwrap_or_default();
            watcher::subscribe(folder_of(path), Some(name), Arc::clone(changed)).map_err(failed)
        };
        // What is a link, or lies behind one, changes at the link and at its end.
        let end = fs::canonicalize(&self.path)
            .ok()
            .filter(|end| *end != self.path);
        let both = (
            subscribe(&self.path)?,
            end.as_deref().map(subscribe).transpose()?,
        );
        Ok(WatchGuard(Box::new(both)))
    }
}

impl SecretProvider for FileSecret {
    fn fetch<'a>(
        &'a self,
        which: &'a Which,
        held: Option<Held<'a>>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Answer, SecretError>> {
        Box::pin(async move {
            if *which != Which::Current {
                let message = format!(
                    "file:{}: a file has its current value alone",
                    self.path.display()
                );
                return Err(SecretError::new(SecretFault::NotFound, message));
            }
            let Found {
                bytes, modified, ..
            } = self.settled(held, limit).await?;
            if held.is_some_and(|held| *held.bytes == **bytes) {
                // A neighbour in the same volume changed, or somebody wrote the same again.
                return Ok(Answer::Unchanged);
            }
            // Told apart from the one held should the clock be too coarse for that.
            let version = Held::told_apart(held, modified.to_string(), &bytes);
            Ok(Answer::Value(Fetched {
                bytes,
                version,
                created_at: Some(modified),
                expires_at: None,
                lease: None,
            }))
        })
    }

    fn watch(
        &self,
        former: Option<WatchGuard>,
        changed: Changed,
    ) -> BoxFuture<'_, Result<Option<WatchGuard>, SecretError>> {
        let secret = self.clone();
        Box::pin(self.lane.run(move || {
            let guard = secret.watch_now(&changed);
            // Only now, so that no change falls between the two.
            drop(former);
            guard.map(Some)
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn found(secret: &FileSecret) -> String {
        String::from_utf8(secret.find(100).expect("found").bytes.to_vec()).expect("text")
    }

    #[test]
    fn a_folder_is_one_object_of_one_instant() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("..1")).expect("folder");
        fs::write(at("..1/user"), "ann").expect("write");
        fs::write(at("..1/password"), "a\"b").expect("write");
        symlink("..1", at("..data")).expect("link");
        // The links beside it may be older than what they lead to.
        for name in ["user", "password", "gone"] {
            symlink(format!("..data/{name}"), at(name)).expect("link");
        }
        let secret = FileSecret::new(folder.path());
        assert_eq!(found(&secret), r#"{"password":"a\"b","user":"ann"}"#);
        assert_eq!(found(&FileSecret::new(&at("user"))), "ann");
        assert_eq!(
            secret.find(10).err().expect("long").fault,
            SecretFault::TooLong
        );
        fs::write(at("..1/blob"), [0xff]).expect("write");
        assert_eq!(
            secret.find(100).err().expect("bytes").fault,
            SecretFault::Misconfigured
        );
    }

    #[test]
    fn what_is_missing_or_empty_is_no_value() {
        let folder = tempfile::tempdir().expect("folder");
        let secret = FileSecret::new(&folder.path().join("a"));
        let fault = || secret.find(100).err().expect("no value").fault;
        assert_eq!(fault(), SecretFault::NotFound);
        fs::write(&secret.path, "").expect("write");
        assert_eq!(fault(), SecretFault::Unavailable);
        fs::remove_file(&secret.path).expect("remove");
        fs::create_dir(&secret.path).expect("folder");
        assert_eq!(fault(), SecretFault::NotFound);
    }
}
