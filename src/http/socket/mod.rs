//! Binding the applications' Unix socket, with owner, group and mode.

mod folder;
mod private;

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{fs::Stat, io::Errno};
use tokio::time::sleep;
use tracing::error;

use self::private::Private;
use crate::{config::Listen, files::run_blocking};

/// How often the socket's file is looked for.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// A socket that can't be bound.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens on the socket.
    #[error("{0}: another process listens on this socket; stop it, or set another `listen.socket`")]
    InUse(PathBuf),
    /// The path exists and isn't a socket.
    #[error("{0}: `listen.socket` exists and is not a socket; remove it, or set another path")]
    NotASocket(PathBuf),
    /// Every user can write to the socket's folder, or to one that it is in.
    #[error(
        "every user can write to {} and could put another socket in the place of `listen.socket`, \
         which `listen.refuse_writable_folder` forbids; run: chmod +t on it, or set another \
         `listen.socket`",
        .0.display()
    )]
    WritableFolder(PathBuf),
    /// The configured owner or group doesn't exist.
    #[error("listen.{key}: no such {kind}: {name:?}")]
    Unknown {
        /// `owner` or `group`.
        key: &'static str,
        /// `user` or `group`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The file system ignored the mode, owner or group.
    #[error(
        "{path}: the socket has {found} after it was set to {wanted}; its file system ignores \
         permissions, so set another `listen.socket`"
    )]
    NotAsSet {
        /// The socket.
        path: PathBuf,
        /// Actual mode, owner and group.
        found: String,
        /// Configured mode, owner and group.
        wanted: String,
    },
    /// A system call failed.
    #[error("{action}: {error}")]
    Io {
        /// What failed, on what.
        action: String,
        /// The system's error.
        error: io::Error,
    },
}

fn failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> ListenError {
    move |error| ListenError::Io {
        action: action.into(),
        error,
    }
}

/// A bound Unix socket, in its place. Removes its file on drop, unless another process has replaced
/// it.
pub(crate) struct BoundSocket {
    pub(crate) listener: UnixListener,
    pub(crate) path: PathBuf,
    /// The device and inode of its file.
    file: (u64, u64),
}

impl BoundSocket {
    pub(crate) fn bind(settings: &Listen) -> Result<Self, ListenError> {
        let path = &settings.socket;
        folder::protect(settings);
        folder::examine(settings)?;
        match occupant(path)? {
            Occupant::Nothing => {}
            Occupant::Listener => return Err(ListenError::InUse(path.clone())),
            Occupant::Stale => {
                let stale = format!("can't remove the stale socket {}", path.display());
                fs::remove_file(path).map_err(failed(stale))?;
            }
        }
        let Prepared {
            private,
            listener,
            stat,
        } = Prepared::new(settings)?;
        match private.publish(path) {
            Err(Errno::EXIST) => return Err(ListenError::InUse(path.clone())),
            published => published
                .map_err(io::Error::from)
                .map_err(failed(format!("can't listen on {}", path.display())))?,
        }
        Ok(Self {
            listener,
            path: path.clone(),
            file: (stat.st_dev, stat.st_ino),
        })
    }

    /// Does all that `bind` does but to take the place, where a sidecar may be listening.
    pub(crate) fn rehearse(settings: &Listen) -> Result<(), ListenError> {
        folder::examine(settings)?;
        occupant(&settings.socket)?;
        Prepared::new(settings).map(drop)
    }

    /// Waits until the socket's file is no longer in its place, so that applications can't connect.
    pub(crate) async fn lost(&self) {
        loop {
            sleep(CHECK_EVERY).await;
            let (path, file) = (self.path.clone(), self.file);
            if !run_blocking(move || is_in_place(&path, file)).await {
                return;
            }
        }
    }

    /// Binds the socket again, once that is possible.
    pub(crate) async fn restored(settings: &Listen) -> Self {
        let mut reason = String::new();
        loop {
            let owned = settings.clone();
            match run_blocking(move || Self::bind(&owned)).await {
                Ok(socket) => return socket,
                Err(error) if error.to_string() != reason => {
                    reason = error.to_string();
                    error!("no application can connect: {reason}; retrying");
                }
                Err(_) => {}
            }
            sleep(CHECK_EVERY).await;
        }
    }
}

/// A socket that is not in its place yet.
struct Prepared {
    private: Private,
    listener: UnixListener,
    stat: Stat,
}

impl Prepared {
    fn new(settings: &Listen) -> Result<Self, ListenError> {
        let path = &settings.socket;
        let shown = path.display();
        let owner = settings.owner.as_deref().map(user_id).transpose()?;
        let group = settings.group.as_deref().map(group_id).transpose()?;
        let private = Private::create(path).map_err(failed(format!("can't listen on {shown}")))?;
        let listener = private
            .bind()
            .map_err(failed(format!("can't listen on {shown}")))?;
        let not_given = || failed(format!("can't set owner and group of {shown}"));
        private.set_owner(None, group).map_err(not_given())?;
        private
            .set_mode(settings.mode)
            .map_err(failed(format!("can't set the mode of {shown}")))?;
        // Last: without CAP_FOWNER, the mode of what another user owns can't be set.
        private.set_owner(owner, None).map_err(not_given())?;
        let stat = private
            .stat()
            .map_err(failed(format!("can't inspect {shown}")))?;
        let found = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
        let wanted = (
            settings.mode,
            owner.unwrap_or(found.1),
            group.unwrap_or(found.2),
        );
        if found != wanted {
            let describe = |(mode, uid, gid)| format!("mode {mode:04o}, owner {uid}, group {gid}");
            return Err(ListenError::NotAsSet {
                path: path.clone(),
                found: describe(found),
                wanted: describe(wanted),
            });
        }
        Ok(Self {
            private,
            listener,
            stat,
        })
    }
}

/// Whether `path` is the file with this device and inode. Its number isn't reused while the socket
/// is open.
fn is_in_place(path: &Path, file: (u64, u64)) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == file)
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        if is_in_place(&self.path, self.file) {
            // If this fails, the next start removes the stale socket.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What is in the socket's place.
enum Occupant {
    Nothing,
    /// A socket that no process listens on.
    Stale,
    Listener,
}

fn occupant(path: &Path) -> Result<Occupant, ListenError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nothing),
        Err(error) => return Err(failed(format!("can't inspect {}", path.display()))(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Occupant::Stale),
        // Also when this process may not connect: the socket may belong to another process.
        Ok(_) | Err(_) => Ok(Occupant::Listener),
    }
}

fn user_id(name: &str) -> Result<u32, ListenError> {
    let known = || uzers::get_user_by_name(name).map(|user| user.uid());
    name.parse()
        .ok()
        .or_else(known)
        .ok_or_else(|| ListenError::Unknown {
            key: "owner",
            kind: "user",
            name: name.into(),
        })
}

fn group_id(name: &str) -> Result<u32, ListenError> {
    let known = || uzers::get_group_by_name(name).map(|group| group.gid());
    name.parse()
        .ok()
        .or_else(known)
        .ok_or_else(|| ListenError::Unknown {
            key: "group",
            kind: "group",
            name: name.into(),
        })
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::symlink,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        thread,
    };

    use super::*;

    fn settings(path: &Path, mode: u32) -> Listen {
        Listen {
            socket: path.to_owned(),
            mode,
            owner: None,
            group: None,
            refuse_writable_folder: false,
            tcp: None,
        }
    }

    #[test]
    fn a_socket_has_its_mode_and_is_removed_with_its_listener() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let bound = BoundSocket::bind(&settings(&path, 0o640)).expect("bind");
        assert_eq!(fs::metadata(&path).expect("socket").mode() & 0o777, 0o640);
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_path_of_any_allowed_length_can_be_bound() {
        let folder = tempfile::tempdir().expect("folder");
        let room = 107 - "/s".len() - folder.path().as_os_str().len() - "/".len();
        let deep = folder.path().join("x".repeat(room));
        fs::create_dir(&deep).expect("folder");
        let bound = BoundSocket::bind(&settings(&deep.join("s"), 0o660)).expect("bind");
        UnixStream::connect(deep.join("s")).expect("connect");
        drop(bound);
        let left = fs::read_dir(&deep).expect("read").count();
        assert_eq!(left, 0, "no temporary folder remains");
    }

    #[test]
    fn a_link_in_the_sockets_place_changes_no_other_file() {
        let folder = tempfile::tempdir().expect("folder");
        let (path, stolen) = (folder.path().join("s"), folder.path().join("stolen"));
        let victim = folder.path().join("victim");
        fs::write(&victim, "key").expect("write");
        let before = fs::metadata(&victim).expect("victim").mode();
        let is_over = Arc::new(AtomicBool::new(false));
        let swap = {
            let (path, victim, is_over) = (path.clone(), victim.clone(), Arc::clone(&is_over));
            move || {
                while !is_over.load(Ordering::Relaxed) {
                    if fs::rename(&path, &stolen).is_ok() {
                        let _ = symlink(&victim, &path);
                        let _ = fs::remove_file(&path);
                    }
                }
            }
        };
        let swapping = thread::spawn(swap);
        for _ in 0..300 {
            // Fails whenever the link is there first.
            let _ = BoundSocket::bind(&settings(&path, 0o666));
        }
        is_over.store(true, Ordering::Relaxed);
        swapping.join().expect("joined");
        assert_eq!(fs::metadata(&victim).expect("victim").mode(), before);
    }

    #[test]
    fn a_stale_socket_is_replaced_but_a_live_one_or_a_file_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).expect("bind"));
        let bound = BoundSocket::bind(&settings(&path, 0o660)).expect("replaces the stale one");
        assert!(matches!(
            BoundSocket::bind(&settings(&path, 0o660)),
            Err(ListenError::InUse(_))
        ));
        drop(bound);
        fs::write(&path, "precious").expect("write");
        assert!(matches!(
            BoundSocket::bind(&settings(&path, 0o660)),
            Err(ListenError::NotASocket(_))
        ));
        assert_eq!(fs::read(&path).expect("read"), b"precious");
    }

    #[test]
    fn a_rehearsal_finds_the_same_faults_and_changes_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let rehearse = |settings: &Listen| BoundSocket::rehearse(settings);
        let faulty = [
            settings(Path::new("/nowhere/s"), 0o660),
            settings(Path::new("/dev/null"), 0o660),
            Listen {
                group: Some("no-such-group".into()),
                ..settings(&path, 0o660)
            },
        ];
        for settings in faulty {
            let error = BoundSocket::bind(&settings).err().expect("refused");
            let found = rehearse(&settings).expect_err("refused");
            assert_eq!(found.to_string(), error.to_string());
        }
        rehearse(&settings(&path, 0o660)).expect("free");
        assert_eq!(fs::read_dir(&folder).expect("read").count(), 0);
        drop(UnixListener::bind(&path).expect("bind"));
        rehearse(&settings(&path, 0o660)).expect("stale");
        let bound = BoundSocket::bind(&settings(&path, 0o660)).expect("bind");
        rehearse(&settings(&path, 0o660)).expect("a sidecar may be running");
        UnixStream::connect(&path).expect("it still listens");
        drop(bound);
    }

    #[test]
    fn an_unknown_group_is_named_in_the_error() {
        let folder = tempfile::tempdir().expect("folder");
        let unknown = Listen {
            group: Some("no-such-group".into()),
            ..settings(&folder.path().join("s"), 0o660)
        };
        let error = BoundSocket::bind(&unknown)
            .err()
            .expect("refused")
            .to_string();
        assert_eq!(error, "listen.group: no such group: \"no-such-group\"");
    }
}
