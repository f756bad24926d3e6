//! Binding the applications' sockets: a Unix socket with owner, group and mode, and loopback TCP.

use std::{
    fs, io,
    net::TcpListener,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, fchmod},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};

use crate::config::Listen;

/// Connections that the kernel queues until they are accepted, capped by `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

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

/// A bound Unix socket. Removes its file on drop, unless another process has replaced the file.
pub(crate) struct BoundSocket {
    pub(crate) listener: UnixListener,
    pub(crate) path: PathBuf,
    inode: u64,
}

impl BoundSocket {
    pub(crate) fn bind(settings: &Listen) -> Result<Self, ListenError> {
        let path = settings.socket.clone();
        let shown = path.display().to_string();
        let owner = settings.owner.as_deref().map(user_id).transpose()?;
        let group = settings.group.as_deref().map(group_id).transpose()?;
        remove_stale(&path)?;

        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let bound = || -> io::Result<UnixListener> {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            // Linux creates the file with the socket's own mode, so no one can connect before the
            // configured mode is set.
            fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            bind(&socket, &SocketAddrUnix::new(&path)?)?;
            listen(&socket, BACKLOG)?;
            Ok(socket.into())
        };
        let listener = bound().map_err(failed(format!("can't listen on {shown}")))?;
        if owner.is_some() || group.is_some() {
            std::os::unix::fs::chown(&path, owner, group)
                .map_err(failed(format!("can't set owner and group of {shown}")))?;
        }
        let permissions = fs::Permissions::from_mode(settings.mode);
        fs::set_permissions(&path, permissions)
            .map_err(failed(format!("can't set the mode of {shown}")))?;

        let metadata = fs::metadata(&path).map_err(failed(format!("can't inspect {shown}")))?;
        let found = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
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
        Ok(Self {
            listener,
            path,
            inode: metadata.ino(),
        })
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        if fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
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
