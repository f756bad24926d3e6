//! A socket gets its mode and owner before it is in its place.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
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

use crate::files::folder_of;

/// Connections that the kernel queues until they are accepted, capped by `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A folder beside the socket that only this user can enter. The socket gets its mode and owner in
/// there: in its place, someone who can write to the folder could put a link to another file first,
/// whose mode would be changed instead.
pub(super) struct Private {
    parent: OwnedFd,
    path: PathBuf,
    folder: OwnedFd,
}

/// The socket's name in the private folder.
const NAME: &str = "s";

impl Private {
    pub(super) fn create(socket: &Path) -> io::Result<Self> {
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

    pub(super) fn bind(&self) -> io::Result<UnixListener> {
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

    pub(super) fn set_owner(&self, owner: Option<u32>, group: Option<u32>) -> io::Result<()> {
        let (owner, group) = (owner.map(Uid::from_raw), group.map(Gid::from_raw));
        Ok(chownat(
            &self.folder,
            NAME,
            owner,
            group,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    pub(super) fn set_mode(&self, mode: u32) -> io::Result<()> {
        // Follows links, but there are none in this folder.
        Ok(chmodat(
            &self.folder,
            NAME,
            Mode::from_raw_mode(mode),
            AtFlags::empty(),
        )?)
    }

    pub(super) fn stat(&self) -> io::Result<Stat> {
        Ok(statat(&self.folder, NAME, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Moves the socket to its place, where nothing may be.
    pub(super) fn publish(&self, socket: &Path) -> rustix::io::Result<()> {
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
