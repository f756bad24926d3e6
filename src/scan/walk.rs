//! Walks folders, and reports everything in them.

use std::{
    fs, iter,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use walkdir::WalkDir;

/// An entry beneath a root, or the root itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visit {
    /// A regular file and its length in bytes.
    File(PathBuf, u64),
    /// A pipe that is the root itself. Opening it waits for its writer.
    Pipe(PathBuf),
    /// An entry that is skipped, and what it is.
    Skipped(PathBuf, &'static str),
    /// An entry that can't be read, and why.
    Failed(PathBuf, String),
}

/// Returns `root` and everything beneath it, except folders. A link is followed if it is `root`
/// itself or if `follow_links` is set.
pub fn walk(root: &Path, follow_links: bool) -> Box<dyn Iterator<Item = Visit>> {
    match fs::metadata(root) {
        Err(error) => Box::new(iter::once(Visit::Failed(root.into(), error.to_string()))),
        Ok(metadata) if !metadata.is_dir() => Box::new(iter::once(named(root.into(), &metadata))),
        Ok(_) => {
            let root = root.to_owned();
            let entries = WalkDir::new(&root).follow_links(follow_links).into_iter();
            Box::new(entries.filter_map(move |entry| match entry {
                Ok(entry) if entry.file_type().is_dir() || entry.depth() == 0 => None,
                Ok(entry) => Some(match entry.metadata() {
                    Ok(metadata) => visit(entry.into_path(), &metadata),
                    Err(error) => failed(&root, &error),
                }),
                Err(error) => Some(failed(&root, &error)),
            }))
        }
    }
}

/// A root is never skipped silently.
fn named(root: PathBuf, metadata: &fs::Metadata) -> Visit {
    match visit(root, metadata) {
        Visit::Skipped(path, _) if metadata.file_type().is_fifo() => Visit::Pipe(path),
        Visit::Skipped(path, what) => {
            Visit::Failed(path, format!("a {what}, not a file, folder or pipe"))
        }
        visit => visit,
    }
}

fn visit(path: PathBuf, metadata: &fs::Metadata) -> Visit {
    let kind = metadata.file_type();
    if kind.is_file() {
        Visit::File(path, metadata.len())
    } else if kind.is_symlink() {
        Visit::Skipped(path, "symbolic link")
    } else if kind.is_fifo() {
        Visit::Skipped(path, "pipe")
    } else if kind.is_socket() {
        Visit::Skipped(path, "socket")
    } else {
        Visit::Skipped(path, "device")
    }
}

fn failed(root: &Path, error: &walkdir::Error) -> Visit {
    let reason = match (error.loop_ancestor(), error.io_error()) {
        (Some(ancestor), _) => format!("a link back to {}", ancestor.display()),
        (None, Some(error)) => error.to_string(),
        (None, None) => error.to_string(),
    };
    Visit::Failed(error.path().unwrap_or(root).into(), reason)
}
