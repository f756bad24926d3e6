//! The applications' listeners: a Unix socket with owner, group and mode, and loopback TCP.

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

/// Connections that the kernel holds until they are accepted; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Why the listeners could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The socket of a process that runs.
    #[error("{0}: another process listens on this socket; stop it, or set another `listen.socket`")]
    InUse(PathBuf),
    /// Something that isn't a socket.
    #[error(
        "{0}: there is something at `listen.socket` that is not a socket; remove it, or set another path"
    )]
    NotASocket(PathBuf),
    /// An owner or group that this machine doesn't know.
    #[error("listen.{key}: this machine knows no {kind} {name:?}")]
    Unknown {
        /// `owner` or `group`.
        key: &'static str,
        /// `user` or `group`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The mode, owner or group did not stick.
    #[error(
        "{path}: the socket has {found} after it was set to {wanted}; its file system ignores permissions, so choose another place"
    )]
    NotAsSet {
        /// The socket.
        path: PathBuf,
        /// Mode, owner and group found.
        found: String,
        /// Mode, owner and group wanted.
        wanted: String,
    },
    /// The system refused.
    #[error("{what}: {error}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// Its answer.
        error: io::Error,
    },
}

fn refused(what: impl Into<String>) -> impl FnOnce(io::Error) -> ListenError {
    move |error| ListenError::Io {
        what: what.into(),
        error,
    }
}

/// A bound Unix socket. Its file is removed when this is dropped, unless another process has put its own there.
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
            // Linux gives the file the socket's own mode, so nobody else gets in between bind and chmod.
            fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            bind(&socket, &SocketAddrUnix::new(&path)?)?;
            listen(&socket, BACKLOG)?;
            Ok(socket.into())
        };
        let listener = bound().map_err(refused(format!("can't listen on {shown}")))?;
        if owner.is_some() || group.is_some() {
            std::os::unix::fs::chown(&path, owner, group)
                .map_err(refused(format!("can't give {shown} its owner and group")))?;
        }
        let permissions = fs::Permissions::from_mode(settings.mode);
        fs::set_permissions(&path, permissions)
            .map_err(refused(format!("can't set the mode of {shown}")))?;

        let metadata = fs::metadata(&path).map_err(refused(format!("can't inspect {shown}")))?;
        let found = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
        let wanted = (
            settings.mode,
            owner.unwrap_or(found.1),
            group.unwrap_or(found.2),
        );
        if found != wanted {
            let say = |(mode, uid, gid)| format!("mode {mode:04o}, owner {uid}, group {gid}");
            return Err(ListenError::NotAsSet {
                path,
                found: say(found),
                wanted: say(wanted),
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
            // Left behind, it would be removed as stale by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that nobody listens on any more.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused(format!("can't inspect {}", path.display()))(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(refused(format!(
                "can't remove the stale socket {}",
                path.display()
            ))),
        // Also when this process may not connect: somebody else's socket is not ours to remove.
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

/// A loopback TCP listener.
pub(crate) fn bind_tcp(address: std::net::SocketAddr) -> Result<TcpListener, ListenError> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(refused(format!("can't listen on {address} (`listen.tcp`)")))
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
    fn a_socket_gets_its_mode_and_goes_with_its_listener() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let bound = BoundSocket::bind(&settings(&path, 0o640)).expect("bind");
        assert_eq!(fs::metadata(&path).expect("socket").mode() & 0o777, 0o640);
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
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
    fn an_owner_that_nobody_knows_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let unknown = Listen {
            group: Some("no-such-group".into()),
            ..settings(&folder.path().join("s"), 0o660)
        };
        let error = BoundSocket::bind(&unknown)
            .err()
            .expect("refused")
            .to_string();
        assert_eq!(
            error,
            "listen.group: this machine knows no group \"no-such-group\""
        );
    }
}
