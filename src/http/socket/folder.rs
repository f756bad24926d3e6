//! Who can replace the socket. Everyone who can write to the socket's folder can replace it.

use std::{
    fs::{self, File, Metadata, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::process::{getegid, geteuid};
use tracing::warn;

use super::ListenError;
use crate::{config::Listen, files::folder_of};

const STICKY: u32 = 0o1000;
const GROUP_WRITES: u32 = 0o020;
const EVERYONE_WRITES: u32 = 0o002;

/// Makes the socket's folder sticky if every user can write to it and it is this process's own, so
/// that others can't rename what isn't theirs.
pub(super) fn protect(settings: &Listen) {
    let folder = folder_of(&settings.socket);
    let made_sticky = File::open(folder).and_then(|opened| {
        let metadata = opened.metadata()?;
        let mode = metadata.mode() & 0o7777;
        let is_open = metadata.is_dir() && is_open(&metadata);
        if is_open {
            opened.set_permissions(Permissions::from_mode(mode | STICKY))?;
        }
        Ok(is_open)
    });
    // If it can't be, `examine` finds that.
    if let Ok(true) = made_sticky {
        warn!(
            "every user can write to {}, so it was made sticky: others could have put another \
             socket in the place of this one",
            folder.display()
        );
    }
}

/// Warns of users who could replace the socket. That can be right: containers that share a volume
/// can have it mounted read-only. If every user could, the settings may forbid it.
///
/// # Errors
/// [`ListenError::WritableFolder`]
pub(super) fn examine(settings: &Listen) -> Result<(), ListenError> {
    // If it can't be inspected, it can't be bound in either, which is reported then.
    let Ok(folder) = folder_of(&settings.socket).canonicalize() else {
        return Ok(());
    };
    if let Some(open) = open_to_everyone(&folder) {
        if settings.refuse_writable_folder {
            return Err(ListenError::WritableFolder(open));
        }
        warn_of("every user", &open);
    } else if let Some(who) = fs::metadata(&folder).ok().and_then(|found| others(&found)) {
        warn_of(&who, &folder);
    }
    Ok(())
}

fn warn_of(who: &str, folder: &Path) {
    warn!(
        "{who} can write to {}, and could put another socket in the place of this one, which would \
         receive what applications send; mount it read-only for them, or set another \
         `listen.socket`",
        folder.display()
    );
}

/// The first folder on the way up in which every user can replace what belongs to others.
fn open_to_everyone(folder: &Path) -> Option<PathBuf> {
    let found = |folder: &&Path| fs::metadata(folder).is_ok_and(|metadata| is_open(&metadata));
    folder.ancestors().find(found).map(Path::to_owned)
}

fn is_open(folder: &Metadata) -> bool {
    folder.mode() & (EVERYONE_WRITES | STICKY) == EVERYONE_WRITES
}

/// Who else can write to a folder: its owner, or its group.
fn others(folder: &Metadata) -> Option<String> {
    let (owner, group) = (folder.uid(), folder.gid());
    if owner != 0 && owner != geteuid().as_raw() {
        return Some(format!("user {owner}"));
    }
    let is_shared = folder.mode() & (GROUP_WRITES | STICKY) == GROUP_WRITES;
    (is_shared && group != 0 && group != getegid().as_raw()).then(|| format!("group {group}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(folder: &Path, mode: u32) {
        fs::set_permissions(folder, Permissions::from_mode(mode)).expect("chmod");
    }

    fn settings(folder: &Path) -> Listen {
        Listen {
            socket: folder.join("s"),
            mode: 0o660,
            owner: None,
            group: None,
            refuse_writable_folder: true,
            tcp: None,
        }
    }

    #[test]
    fn a_folder_that_everyone_can_write_to_is_found_on_the_way_up() {
        let root = tempfile::tempdir().expect("folder");
        let (outer, inner) = (root.path().join("outer"), root.path().join("outer/inner"));
        fs::create_dir_all(&inner).expect("folders");
        set(&inner, 0o755);
        for (mode, is_found) in [
            (0o755, false),
            (0o777, true),
            (0o1777, false),
            (0o2777, true),
            (0o702, true),
        ] {
            set(&outer, mode);
            let found = is_found.then(|| outer.clone());
            assert_eq!(open_to_everyone(&inner), found, "{mode:o}");
            assert_eq!(open_to_everyone(&outer), found, "{mode:o}");
        }
        let refused = examine(&settings(&inner));
        assert!(matches!(refused, Err(ListenError::WritableFolder(folder)) if folder == outer));
        let mut lenient = settings(&inner);
        lenient.refuse_writable_folder = false;
        assert!(examine(&lenient).is_ok());
    }

    #[test]
    fn an_own_folder_becomes_sticky_only_if_everyone_can_write_to_it() {
        let root = tempfile::tempdir().expect("folder");
        for (before, after) in [
            (0o777, 0o1777),
            (0o2777, 0o3777),
            (0o755, 0o755),
            (0o770, 0o770),
        ] {
            set(root.path(), before);
            protect(&settings(root.path()));
            let mode = fs::metadata(root.path()).expect("folder").mode() & 0o7777;
            assert_eq!(mode, after, "{before:o}");
            assert!(examine(&settings(root.path())).is_ok(), "{before:o}");
        }
    }
}
