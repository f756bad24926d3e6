//! The file itself: written whole, with its mode and owner, and only if it has to change.

use std::{
    fs::{File, Metadata, OpenOptions, Permissions},
    hash::{BuildHasher, RandomState},
    io::{self, ErrorKind, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::Path,
};

use rustix::{
    fs::OFlags,
    process::{getegid, geteuid},
};
use tracing::warn;
use zeroize::Zeroizing;

use super::Failure;
use crate::{config, files};

/// The bit of a folder that gives its group to what is made in it.
const SET_GROUP: u32 = 0o2000;

/// A file, and what this process last put there.
#[derive(Default)]
pub(super) struct Target {
    /// For a file that it may not read back.
    last: Option<Last>,
    hasher: RandomState,
}

/// A file as it was written, and a digest of its bytes under a key that only this process knows.
struct Last {
    inode: (u64, u64),
    changed: (i64, i64),
    digest: u64,
}

impl Target {
    /// Puts `bytes` in the file, unless it is as it should be; whether it had to be written. A symbolic link is not followed: whoever
    /// may write in the folder could lead it elsewhere.
    pub(super) fn place(&mut self, render: &config::Render, bytes: &[u8]) -> Result<bool, Failure> {
        let path = &render.file;
        let failed = |message: String| Failure {
            reason: "write",
            message: format!("{}: {message}", path.display()),
        };
        let parent = path.parent().unwrap_or(Path::new("/"));
        let of_folder = parent.metadata().map_err(|error| match error.kind() {
            ErrorKind::NotFound => failed(format!(
                "the folder {} is missing; make it",
                parent.display()
            )),
            _ => failed(format!(
                "can't inspect the folder {}: {error}",
                parent.display()
            )),
        })?;
        let wanted = Attributes::new(render, &of_folder);
        if self
            .is_as_it_should_be(path, &wanted, bytes)
            .map_err(failed)?
        {
            if let Err(error) = files::remove_leftover(path) {
                warn!(file = %path.display(), "what a write that was cut short left beside it can't be removed: {error}");
            }
            return Ok(false);
        }
        self.last = None;
        let cant_open = |error| {
            failed(format!(
                "can't open the folder {}: {error}",
                parent.display()
            ))
        };
        let folder = File::open(parent).map_err(cant_open)?;
        let mut reason = None;
        let written = files::replace(path, bytes, |file| {
            wanted.give(file).map_err(|(why, error)| {
                reason = Some(why);
                error
            })
        });
        written.map_err(|error| {
            failed(format!(
                "{}: {error}",
                reason.as_deref().unwrap_or("can't write it")
            ))
        })?;
        // It is there, and whoever reads it has to be told, whatever a crash makes of it.
        if let Err(error) = folder.sync_all() {
            warn!(file = %path.display(), "the file is written, but its folder can't be synced: {error}");
        }
        self.last = path
            .symlink_metadata()
            .ok()
            .map(|metadata| self.note(&metadata, bytes));
        Ok(true)
    }

    fn note(&self, metadata: &Metadata, bytes: &[u8]) -> Last {
        Last {
            inode: (metadata.dev(), metadata.ino()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            digest: self.hasher.hash_one(bytes),
        }
    }

    fn is_as_it_should_be(
        &self,
        path: &Path,
        wanted: &Attributes,
        bytes: &[u8],
    ) -> Result<bool, String> {
        let metadata = match path.symlink_metadata() {
            Ok(metadata) if metadata.is_symlink() => {
                return Err("it is a symbolic link; name the file itself".into());
            }
            Ok(metadata) if !metadata.is_file() => {
                return Err("something that is not a file stands in its place".into());
            }
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(format!("can't inspect it: {error}")),
        };
        // Whoever exchanged it for a pipe meanwhile has nobody at its other end.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path);
        let Ok(mut file) = opened else {
            // What can't be read is written anew, unless it is still what this process wrote.
            let now = self.note(&metadata, bytes);
            let is_ours = |last: &Last| {
                (last.inode, last.changed, last.digest) == (now.inode, now.changed, now.digest)
            };
            return Ok(wanted.are_those_of(&metadata) && self.last.as_ref().is_some_and(is_ours));
        };
        let metadata = file
            .metadata()
            .map_err(|error| format!("can't inspect it: {error}"))?;
        if metadata.len() != bytes.len() as u64 || !wanted.are_those_of(&metadata) {
            return Ok(false);
        }
        let mut present = Zeroizing::new(Vec::with_capacity(bytes.len() + 1));
        let read = file
            .by_ref()
            .take(bytes.len() as u64 + 1)
            .read_to_end(&mut present);
        Ok(read.is_ok() && **present == *bytes)
    }
}

/// Who may do what with the file.
struct Attributes {
    mode: u32,
    owner: u32,
    group: u32,
}

impl Attributes {
    /// What the config says; where it is silent, what a new file of this process gets in the folder.
    fn new(render: &config::Render, folder: &Metadata) -> Self {
        let usual_group = || {
            if folder.mode() & SET_GROUP == 0 {
                getegid().as_raw()
            } else {
                folder.gid()
            }
        };
        Self {
            mode: render.mode,
            owner: render.owner.unwrap_or_else(|| geteuid().as_raw()),
            group: render.group.unwrap_or_else(usual_group),
        }
    }

    /// Gives them to the file, before it bears its name. The owner comes last: a file of another owner's takes no mode from this process.
    fn give(&self, file: &File) -> Result<(), (String, io::Error)> {
        let told = |why: &'static str| move |error| (why.to_owned(), error);
        let made = file.metadata().map_err(told("can't inspect it"))?;
        if made.gid() != self.group {
            let needs =
                "can't give it its group (that needs to be a member of it, root, or CAP_CHOWN)";
            fchown(file, None, Some(self.group)).map_err(told(needs))?;
        }
        file.set_permissions(Permissions::from_mode(self.mode))
            .map_err(told("can't set its mode"))?;
        if made.uid() != self.owner {
            let needs = "can't give it its owner (that needs to be root, or CAP_CHOWN)";
            fchown(file, Some(self.owner), None).map_err(told(needs))?;
        }
        let metadata = file.metadata().map_err(told("can't inspect it"))?;
        if self.are_those_of(&metadata) {
            Ok(())
        } else {
            Err((
                "its file system does not keep mode, owner and group".to_owned(),
                ErrorKind::Unsupported.into(),
            ))
        }
    }

    fn are_those_of(&self, metadata: &Metadata) -> bool {
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
            == (self.mode, self.owner, self.group)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    fn render(file: std::path::PathBuf) -> config::Render {
        let name = "a".parse().expect("a name");
        config::Render {
            file,
            content: config::Content::Secret { name, field: None },
            mode: 0o640,
            owner: None,
            group: None,
            notice: None,
            debounce: Duration::ZERO,
            timeout: Duration::ZERO,
            retries: 0,
            required: false,
        }
    }

    #[test]
    fn a_leftover_goes_away_though_the_file_is_as_it_should_be() {
        let folder = tempfile::tempdir().expect("folder");
        let (render, mut target) = (render(folder.path().join("out")), Target::default());
        assert_eq!(target.place(&render, b"one"), Ok(true));
        fs::write(folder.path().join(".out.new"), "plaintext").expect("write");
        assert_eq!(target.place(&render, b"one"), Ok(false));
        assert!(!folder.path().join(".out.new").exists());
    }

    #[test]
    fn a_file_that_no_longer_has_an_owner_of_its_own_goes_back_to_the_process() {
        // Only root can give a file away.
        if !geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("folder");
        let (mut render, mut target) = (render(folder.path().join("out")), Target::default());
        (render.owner, render.group) = (Some(1234), Some(2345));
        let owners = |render: &config::Render| {
            let metadata = fs::metadata(&render.file).expect("file");
            (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
        };
        assert_eq!(target.place(&render, b"one"), Ok(true));
        assert_eq!(
            (target.place(&render, b"one"), owners(&render)),
            (Ok(false), (1234, 2345, 0o640))
        );
        render.owner = None;
        assert_eq!(
            (target.place(&render, b"one"), owners(&render)),
            (Ok(true), (0, 2345, 0o640))
        );
        render.group = None;
        assert_eq!(
            (target.place(&render, b"one"), owners(&render)),
            (Ok(true), (0, getegid().as_raw(), 0o640))
        );
        // A folder that gives its group to what is made in it does so here, too.
        std::os::unix::fs::chown(folder.path(), None, Some(2345)).expect("chown");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o2700)).expect("chmod");
        assert_eq!(
            (target.place(&render, b"one"), owners(&render)),
            (Ok(true), (0, 2345, 0o640))
        );
        assert_eq!(target.place(&render, b"one"), Ok(false));
    }

    /// CAP_CHOWN alone gives a file away; it neither sets the mode of one that is given away nor reads it back.
    #[test]
    fn a_file_of_another_owner_needs_only_the_right_to_give_it_away_and_is_written_once() {
        // Capabilities belong to a thread.
        std::thread::spawn(give_away_with_one_capability)
            .join()
            .expect("it holds");
    }

    fn give_away_with_one_capability() {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

        let keep = CapabilitySet::CHOWN;
        let mut sets = capabilities(None).expect("capabilities");
        if !geteuid().is_root() || !sets.effective.contains(keep) {
            return;
        }
        (sets.effective, sets.permitted, sets.inheritable) = (keep, keep, CapabilitySet::empty());
        set_capabilities(None, sets).expect("fewer capabilities");
        let folder = tempfile::tempdir().expect("folder");
        let (mut render, mut target) = (render(folder.path().join("out")), Target::default());
        (render.mode, render.owner) = (0o600, Some(1234));
        assert_eq!(target.place(&render, b"one"), Ok(true));
        let metadata = fs::metadata(&render.file).expect("file");
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (1234, 0o600));
        fs::read(&render.file).expect_err("it isn't ours any more");
        assert_eq!(target.place(&render, b"one"), Ok(false));
        assert_eq!(target.place(&render, b"two"), Ok(true));
        // Somebody else exchanged it.
        fs::remove_file(&render.file).expect("our folder");
        fs::write(&render.file, "six").expect("write");
        std::os::unix::fs::chown(&render.file, Some(1234), None).expect("chown");
        assert_eq!(target.place(&render, b"two"), Ok(true));
        assert_eq!(target.place(&render, b"two"), Ok(false));
        // Another process doesn't know it.
        assert_eq!(Target::default().place(&render, b"two"), Ok(true));
    }
}
