//! The file itself: replaced atomically, with its mode and owner, and only if it has to change.

use std::{
    fs::{File, Metadata, OpenOptions},
    hash::{BuildHasher, RandomState},
    io::{self, ErrorKind, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use rustix::{
    fs::OFlags,
    process::{getegid, geteuid},
};
use tracing::warn;
use zeroize::Zeroizing;

use super::RenderFailure;
use crate::{
    config,
    files::{self, Attribute},
};

/// The mode bit of a directory that passes its group on to new files.
const SET_GROUP: u32 = 0o2000;

/// A file, and what this process last wrote to it.
#[derive(Default)]
pub(super) struct Target {
    /// Used if the process may not read the file back.
    last: Option<LastWrite>,
    hasher: RandomState,
}

/// A file as it was written, and a digest of its content under a random key.
struct LastWrite {
    inode: (u64, u64),
    changed: (i64, i64),
    digest: u64,
}

impl Target {
    /// Writes `bytes` unless the file is up to date. Returns whether it was written.
    ///
    /// Symbolic links are not followed: anyone who may write to the directory could redirect them.
    pub(super) fn update(
        &mut self,
        render: &config::Render,
        bytes: &[u8],
    ) -> Result<bool, RenderFailure> {
        self.write_if_outdated(render, bytes)
            .map_err(|message| RenderFailure {
                reason: "write",
                message: format!("{}: {message}", render.file.display()),
            })
    }

    fn write_if_outdated(&mut self, render: &config::Render, bytes: &[u8]) -> Result<bool, String> {
        let path = &render.file;
        let parent = path.parent().unwrap_or(Path::new("/"));
        let parent_metadata = parent.metadata().map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                format!("the directory {} is missing; create it", parent.display())
            }
            _ => format!("can't access the directory {}: {error}", parent.display()),
        })?;
        let wanted = Attributes::new(render, &parent_metadata);
        if self.is_up_to_date(path, &wanted, bytes)? {
            if let Err(error) = files::remove_leftover(path) {
                warn!(
                    file = %path.display(),
                    "can't remove the temporary file of an interrupted write: {error}"
                );
            }
            return Ok(false);
        }
        self.last = None;
        write(path, parent, bytes, &wanted)?;
        self.last = path
            .symlink_metadata()
            .ok()
            .map(|metadata| self.describe(&metadata, bytes));
        Ok(true)
    }

    fn describe(&self, metadata: &Metadata, bytes: &[u8]) -> LastWrite {
        LastWrite {
            inode: (metadata.dev(), metadata.ino()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            digest: self.hasher.hash_one(bytes),
        }
    }

    fn is_up_to_date(
        &self,
        path: &Path,
        wanted: &Attributes,
        bytes: &[u8],
    ) -> Result<bool, String> {
        let metadata = match path.symlink_metadata() {
            Ok(metadata) if metadata.is_symlink() => {
                return Err("the path is a symbolic link; configure its target instead".into());
            }
            Ok(metadata) if !metadata.is_file() => {
                return Err("the path exists and is not a regular file".into());
            }
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(format!("can't access the file: {error}")),
        };
        // Non-blocking, in case it was replaced by a pipe since.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path);
        let Ok(mut file) = opened else {
            // A file that can't be read is written again unless it is what this process wrote.
            let now = self.describe(&metadata, bytes);
            let is_ours = |last: &LastWrite| {
                (last.inode, last.changed, last.digest) == (now.inode, now.changed, now.digest)
            };
            return Ok(wanted.match_those_of(&metadata) && self.last.as_ref().is_some_and(is_ours));
        };
        let metadata = file
            .metadata()
            .map_err(|error| format!("can't access the file: {error}"))?;
        if metadata.len() != bytes.len() as u64 || !wanted.match_those_of(&metadata) {
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

/// Replaces the file at `path` in the directory `parent`.
fn write(path: &Path, parent: &Path, bytes: &[u8], wanted: &Attributes) -> Result<(), String> {
    let folder = File::open(parent)
        .map_err(|error| format!("can't open the directory {}: {error}", parent.display()))?;
    let mut reason = None;
    let written = files::replace(path, bytes, |file| {
        wanted.apply(file).map_err(|(why, error)| {
            reason = Some(why);
            error
        })
    });
    written.map_err(|error| format!("{}: {error}", reason.as_deref().unwrap_or("can't write")))?;
    // The file is in place and its readers must be notified, even if a crash could undo it.
    if let Err(error) = folder.sync_all() {
        warn!(
            file = %path.display(),
            "the file is written, but its directory can't be synced: {error}"
        );
    }
    Ok(())
}

/// The mode, owner and group of the file.
struct Attributes {
    mode: u32,
    owner: u32,
    group: u32,
}

impl Attributes {
    /// Returns the configured attributes; by default, those of a new file of this process in the
    /// directory.
    fn new(render: &config::Render, folder: &Metadata) -> Self {
        let default_group = || {
            if folder.mode() & SET_GROUP == 0 {
                getegid().as_raw()
            } else {
                folder.gid()
            }
        };
        Self {
            mode: render.mode,
            owner: render.owner.unwrap_or_else(|| geteuid().as_raw()),
            group: render.group.unwrap_or_else(default_group),
        }
    }

    /// Applies the attributes before the file gets its name.
    fn apply(&self, file: &File) -> Result<(), (String, io::Error)> {
        let given = files::give(file, Some(self.group), self.mode, Some(self.owner));
        given.map_err(|(attribute, error)| {
            let what = match attribute {
                Attribute::Group => "can't set the group (requires membership, root or CAP_CHOWN)",
                Attribute::Mode | Attribute::Extended => "can't set the mode",
                Attribute::Owner => "can't set the owner (requires root or CAP_CHOWN)",
            };
            (what.to_owned(), error)
        })?;
        let metadata = file
            .metadata()
            .map_err(|error| ("can't access the file".to_owned(), error))?;
        if self.match_those_of(&metadata) {
            Ok(())
        } else {
            Err((
                "the file system does not support mode, owner and group".to_owned(),
                ErrorKind::Unsupported.into(),
            ))
        }
    }

    fn match_those_of(&self, metadata: &Metadata) -> bool {
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
            == (self.mode, self.owner, self.group)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
        time::Duration,
    };

    use super::*;
    use crate::model::Conversion;

    fn render(file: std::path::PathBuf) -> config::Render {
        let name = "a".parse().expect("a name");
        config::Render {
            file,
            content: config::Content::Secret {
                name,
                field: None,
                conversion: Conversion::default(),
            },
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
    fn a_leftover_is_removed_even_if_the_file_is_up_to_date() {
        let folder = tempfile::tempdir().expect("folder");
        let (render, mut target) = (render(folder.path().join("out")), Target::default());
        assert_eq!(target.update(&render, b"one"), Ok(true));
        fs::write(folder.path().join(".out.new"), "plaintext").expect("write");
        assert_eq!(target.update(&render, b"one"), Ok(false));
        assert!(!folder.path().join(".out.new").exists());
    }

    #[test]
    fn a_file_without_a_configured_owner_belongs_to_the_process() {
        // Only root can change the owner.
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
        assert_eq!(target.update(&render, b"one"), Ok(true));
        assert_eq!(
            (target.update(&render, b"one"), owners(&render)),
            (Ok(false), (1234, 2345, 0o640))
        );
        render.owner = None;
        assert_eq!(
            (target.update(&render, b"one"), owners(&render)),
            (Ok(true), (0, 2345, 0o640))
        );
        render.group = None;
        assert_eq!(
            (target.update(&render, b"one"), owners(&render)),
            (Ok(true), (0, getegid().as_raw(), 0o640))
        );
        // A directory with the set-group-ID bit passes on its group.
        std::os::unix::fs::chown(folder.path(), None, Some(2345)).expect("chown");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o2700)).expect("chmod");
        assert_eq!(
            (target.update(&render, b"one"), owners(&render)),
            (Ok(true), (0, 2345, 0o640))
        );
        assert_eq!(target.update(&render, b"one"), Ok(false));
    }

    #[test]
    fn a_file_of_another_owner_requires_only_cap_chown_and_is_written_once() {
        files::with_only_cap_chown(change_owner);
    }

    fn change_owner() {
        let folder = tempfile::tempdir().expect("folder");
        let (mut render, mut target) = (render(folder.path().join("out")), Target::default());
        (render.mode, render.owner) = (0o600, Some(1234));
        assert_eq!(target.update(&render, b"one"), Ok(true));
        let metadata = fs::metadata(&render.file).expect("file");
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (1234, 0o600));
        fs::read(&render.file).expect_err("it has another owner");
        assert_eq!(target.update(&render, b"one"), Ok(false));
        assert_eq!(target.update(&render, b"two"), Ok(true));
        // Another process replaces it.
        fs::remove_file(&render.file).expect("removed");
        fs::write(&render.file, "six").expect("write");
        std::os::unix::fs::chown(&render.file, Some(1234), None).expect("chown");
        assert_eq!(target.update(&render, b"two"), Ok(true));
        assert_eq!(target.update(&render, b"two"), Ok(false));
        // A new process doesn't know what was written.
        assert_eq!(Target::default().update(&render, b"two"), Ok(true));
    }
}
