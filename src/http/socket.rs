//! Binding the applications' sockets: a Unix socket with owner, group and mode, and loopback TCP.

use std::{
    fs, io,
    net::TcpListener,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{
        AtFlags, Gid, Mode, OFlags, RenameFlags, Stat, Uid, chmodat, chownat, fchmod, fstat, open,
        openat, renameat, renameat_with, statat, unlinkat,
    },
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
    process::geteuid,
};
use tokio::time::sleep;
use tracing::{error, warn};

use crate::{
    config::Listen,
    files::{folder_of, run_blocking},
};

/// Connections that the kernel queues until they are accepted, capped by `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
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
        let path = settings.socket.clone();
        let shown = path.display().to_string();
        let owner = settings.owner.as_deref().map(user_id).transpose()?;
        let group = settings.group.as_deref().map(group_id).transpose()?;
        warn_of_writers(&path);
        remove_stale(&path)?;

        let private = Private::create(&path).map_err(failed(format!("can't listen on {shown}")))?;
        let listener = private
            .bind()
            .map_err(failed(format!("can't listen on {shown}")))?;
        private
            .set_owner(owner, group)
            .map_err(failed(format!("can't set owner and group of {shown}")))?;
        private
            .set_mode(settings.mode)
            .map_err(failed(format!("can't set the mode of {shown}")))?;
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
                path,
                found: describe(found),
                wanted: describe(wanted),
            });
        }
        match private.publish(&path) {
            Err(Errno::EXIST) => return Err(ListenError::InUse(path)),
            published => published
                .map_err(io::Error::from)
                .map_err(failed(format!("can't listen on {shown}")))?,
        }
        Ok(Self {
            listener,
            path,
            file: (stat.st_dev, stat.st_ino),
        })
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

/// Whether `path` is the file with this device and inode. Its number isn't reused while the socket
/// is open.
fn is_in_place(path: &Path, file: (u64, u64)) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == file)
}

/// A folder beside the socket that only this user can enter. The socket gets its mode and owner in
/// there: in its place, someone who can write to the folder could put a link to another file first,
/// whose mode would be changed instead.
struct Private {
    parent: OwnedFd,
    path: PathBuf,
    folder: OwnedFd,
}

/// The socket's name in the private folder.
const NAME: &str = "s";

impl Private {
    fn create(socket: &Path) -> io::Result<Self> {
        let folder = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = open(folder_of(socket), folder | OFlags::PATH, Mode::empty())?;
        let made = tempfile::Builder::new()
            .prefix(".")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(folder_of(socket))?;
        // Removed by descriptor instead: the path may mean something else by then.
        let path = made.keep();
        let name = path.file_name().unwrap_or_default();
        let folder = openat(&parent, name, folder | OFlags::NOFOLLOW, Mode::empty())?;
        let private = Self {
            parent,
            path,
            folder,
        };
        let stat = fstat(&private.folder)?;
        if stat.st_uid != geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
            return Err(io::Error::other(
                "another process replaced a temporary folder beside it",
            ));
        }
        Ok(private)
    }

    fn bind(&self) -> io::Result<UnixListener> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Linux creates the file with the socket's own mode. No one can connect before it is set.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        // There is no bindat(2). If the path leads elsewhere by now, the next step fails.
        let through_descriptor = format!("/proc/self/fd/{}/{NAME}", self.folder.as_raw_fd());
        let address = SocketAddrUnix::new(self.path.join(NAME))
            // Too long, though the socket's own path may not be.
            .or_else(|_| SocketAddrUnix::new(through_descriptor))?;
        bind(&socket, &address)?;
        listen(&socket, BACKLOG)?;
        Ok(socket.into())
    }

    fn set_owner(&self, owner: Option<u32>, group: Option<u32>) -> io::Result<()> {
        let (owner, group) = (owner.map(Uid::from_raw), group.map(Gid::from_raw));
        Ok(chownat(
            &self.folder,
            NAME,
            owner,
            group,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        // Follows links, but there are none in this folder.
        Ok(chmodat(
            &self.folder,
            NAME,
            Mode::from_raw_mode(mode),
            AtFlags::empty(),
        )?)
    }

    fn stat(&self) -> io::Result<Stat> {
        Ok(statat(&self.folder, NAME, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Moves the socket to its place, where nothing may be.
    fn publish(&self, socket: &Path) -> rustix::io::Result<()> {
        let name = socket.file_name().unwrap_or_default();
        match renameat_with(
            &self.folder,
            NAME,
            &self.parent,
            name,
            RenameFlags::NOREPLACE,
        ) {
            // Not every file system can tell.
            Err(Errno::INVAL | Errno::NOSYS) => renameat(&self.folder, NAME, &self.parent, name),
            done => done,
        }
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // The socket is still here only after a failure, which is what is reported.
        let _ = unlinkat(&self.folder, NAME, AtFlags::empty());
        let name = self.path.file_name().unwrap_or_default();
        let _ = unlinkat(&self.parent, name, AtFlags::REMOVEDIR);
    }
}

/// Warns if any user can put another socket in the place of this one. That is no error: containers
/// that share a volume can have it mounted read-only.
fn warn_of_writers(socket: &Path) {
    const EVERYONE_WRITES: u32 = 0o002;
    const STICKY: u32 = 0o1000;
    let folder = folder_of(socket);
    // If it can't be inspected, it can't be bound in either.
    let is_open = fs::metadata(folder)
        .is_ok_and(|metadata| metadata.mode() & (EVERYONE_WRITES | STICKY) == EVERYONE_WRITES);
    if is_open {
        warn!(
            "every user can write to {}, and could put another socket in the place of this one, \
             which would receive what applications send; mount it read-only for them, run: chmod \
             +t on it, or set another `listen.socket`",
            folder.display()
        );
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        if is_in_place(&self.path, self.file) {
            // If this fails, the next start removes the stale socket.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that no process listens on.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(format!("can't inspect {}", path.display()))(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(failed(format!(
                "can't remove the stale socket {}",
                path.display()
            ))),
        // Also when this process may not connect: the socket may belong to another process.
        Ok(_) | Err(_) => Err(ListenError::InUse(path.to_owned())),
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

/// Binds the loopback TCP listener.
pub(crate) fn bind_tcp(address: std::net::SocketAddr) -> Result<TcpListener, ListenError> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(failed(format!("can't listen on {address} (`listen.tcp`)")))
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
