use std::{
    fs, iter,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use walkdir::WalkDir;

/// What stands in a folder, or was named itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visit {
    /// A regular file, and how many bytes it has.
    File(PathBuf, u64),
    /// A pipe that is the root itself, so somebody wants it read. Opening it waits for its writer.
    Pipe(PathBuf),
    /// Something beneath a folder that is left out, and what it is.
    Skipped(PathBuf, &'static str),
    /// Something that can't be read, and why.
    Failed(PathBuf, String),
}

/// `root` and everything beneath it but the folders. A link that is `root` itself is followed, others if `follow_links`.
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

/// What is named is never left out silently.
fn named(root: PathBuf, metadata: &fs::Metadata) -> Visit {
    match visit(root, metadata) {
        Visit::Skipped(path, _) if metadata.file_type().is_fifo() => Visit::Pipe(path),
        Visit::Skipped(path, what) => Visit::Failed(
            path,
            format!("is a {what}, and neither a file, a folder nor a pipe"),
        ),
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
