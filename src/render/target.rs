//! The file itself: written whole, with its mode and owner, and only if it has to change.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, ErrorKind, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::Path,
};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::Failure;
use crate::{backend::write_whole, config};

/// Puts `bytes` in the file, unless it is as it should be; whether it had to be written. A symbolic link is not followed: whoever may
/// write in the folder could lead it elsewhere.
pub(super) fn place(render: &config::Render, bytes: &[u8]) -> Result<bool, Failure> {
    let path = &render.file;
    let failed = |message: String| Failure { reason: "write", message: format!("{}: {message}", path.display()) };
    if is_as_it_should_be(render, bytes).map_err(failed)? {
        return Ok(false);
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    let folder = File::open(parent).map_err(|error| match error.kind() {
        ErrorKind::NotFound => failed(format!("the folder {} is missing; make it", parent.display())),
        _ => failed(format!("can't open the folder {}: {error}", parent.display())),
    })?;
    let mut reason = None;
    let written = write_whole(path, &folder, bytes, |file| {
        finish(render, file).map_err(|(why, error)| {
            reason = Some(why);
            error
        })
    });
    written.map_err(|error| failed(format!("{}: {error}", reason.as_deref().unwrap_or("can't write it"))))?;
    Ok(true)
}

/// Gives the file its owner and mode, before it bears its name.
fn finish(render: &config::Render, file: &File) -> Result<(), (String, io::Error)> {
    if render.owner.is_some() || render.group.is_some() {
        let needs = || "can't give it its owner and group (that needs to be root, or CAP_CHOWN)".to_owned();
        fchown(file, render.owner, render.group).map_err(|error| (needs(), error))?;
    }
    file.set_permissions(Permissions::from_mode(render.mode)).map_err(|error| ("can't set its mode".to_owned(), error))?;
    let metadata = file.metadata().map_err(|error| ("can't inspect it".to_owned(), error))?;
    if has_attributes(render, &metadata) {
        Ok(())
    } else {
        Err(("its file system does not keep mode, owner and group".to_owned(), ErrorKind::Unsupported.into()))
    }
}

fn has_attributes(render: &config::Render, metadata: &std::fs::Metadata) -> bool {
    metadata.mode() & 0o7777 == render.mode
        && render.owner.is_none_or(|owner| owner == metadata.uid())
        && render.group.is_none_or(|group| group == metadata.gid())
}

fn is_as_it_should_be(render: &config::Render, bytes: &[u8]) -> Result<bool, String> {
    let path = &render.file;
    let is_link = path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    if is_link {
        return Err("it is a symbolic link; name the file itself".into());
    }
    // A pipe would have nobody at its other end.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    // What can't be read is written anew.
    let Ok(mut file) = opened else { return Ok(false) };
    let metadata = file.metadata().map_err(|error| format!("can't inspect it: {error}"))?;
    if !metadata.is_file() {
        return Err("something that is not a file stands in its place".into());
    }
    if metadata.len() != bytes.len() as u64 || !has_attributes(render, &metadata) {
        return Ok(false);
    }
    let mut present = Zeroizing::new(Vec::with_capacity(bytes.len() + 1));
    let read = file.by_ref().take(bytes.len() as u64 + 1).read_to_end(&mut present);
    Ok(read.is_ok() && **present == *bytes)
}
