//! Input and output of a transformation, in constant memory. Incomplete output is removed.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, IsTerminal, Read, Seek, Write},
    mem,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll, ready},
    thread,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::{OFlags, fcntl_getfl};
use tokio::sync::mpsc;

use super::output::{CliError, note, path_for_display};
use crate::files::{self, Attribute, NewFile, Patient};

/// Read size in bytes.
const BLOCK: usize = 256 << 10;
/// Blocks that are read ahead of sending.
const AHEAD: usize = 2;

/// A file or standard input.
pub(super) struct Input {
    source: Box<dyn Read + Send>,
    /// Remaining bytes, if known.
    pub(super) length: Option<u64>,
    name: String,
}

impl Input {
    /// Opens a file, or standard input if `path` is None.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, CliError> {
        let name = path.map_or_else(|| "standard input".into(), path_for_display);
        let failed = |error| unreadable(&name, &error);
        let mut file = match path {
            Some(path) => File::open(path).map_err(failed)?,
            None => Patient::stdin().map_err(failed)?.into_file(),
        };
        let metadata = file.metadata().map_err(failed)?;
        let length = if metadata.is_file() {
            Some(
                metadata
                    .len()
                    .saturating_sub(file.stream_position().map_err(failed)?),
            )
        } else {
            None
        };
        Ok(Self {
            source: Box::new(Patient::from(file)),
            length,
            name,
        })
    }

    /// Reads up to `length` bytes; fewer only at the end of the input.
    pub(super) fn take(&mut self, length: usize) -> Result<Vec<u8>, CliError> {
        let mut bytes = Vec::new();
        let read = (&mut self.source)
            .take(length as u64)
            .read_to_end(&mut bytes);
        read.map_err(|error| unreadable(&self.name, &error))?;
        Ok(bytes)
    }

    pub(super) fn into_source(self) -> Box<dyn Read + Send> {
        self.source
    }

    /// Returns a request body of `head`, which was read already, followed by the rest of the input.
    pub(super) fn into_body(self, head: Vec<u8>, progress: &ProgressBar) -> Upload {
        let (sender, blocks) = mpsc::channel(AHEAD);
        let Self {
            mut source,
            length,
            name,
        } = self;
        // Some files report length 0 but have content, such as those in /proc.
        let remaining = length.filter(|length| *length >= head.len() as u64);
        // Reads may block indefinitely, hence a thread; it ends when the receiver is dropped.
        let reader = move || {
            let mut next: io::Result<Vec<u8>> = Ok(head);
            loop {
                let block = match next {
                    Ok(block) if block.is_empty() => return,
                    Ok(block) => Ok(block),
                    Err(error) => Err(io::Error::new(
                        error.kind(),
                        format!("can't read {name}: {error}"),
                    )),
                };
                let is_failure = block.is_err();
                if sender.blocking_send(block).is_err() || is_failure {
                    return;
                }
                let mut block = Vec::with_capacity(BLOCK);
                next = (&mut source)
                    .take(BLOCK as u64)
                    .read_to_end(&mut block)
                    .map(|_| block);
            }
        };
        thread::spawn(reader);
        Upload {
            blocks,
            remaining,
            progress: progress.clone(),
        }
    }
}

fn unreadable(name: &str, error: &io::Error) -> CliError {
    CliError::failed(format!("can't read {name}: {error}"))
}

/// A request body that is read while it is sent.
pub(super) struct Upload {
    blocks: mpsc::Receiver<io::Result<Vec<u8>>>,
    remaining: Option<u64>,
    progress: ProgressBar,
}

impl Upload {
    /// Creates an upload from blocks that the caller produces.
    pub(super) fn from_blocks(blocks: mpsc::Receiver<io::Result<Vec<u8>>>) -> Self {
        Self {
            blocks,
            remaining: None,
            progress: ProgressBar::hidden(),
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let block = ready!(self.blocks.poll_recv(cx));
        if let Some(Ok(block)) = &block {
            let length = block.len() as u64;
            if self.remaining.is_some_and(|remaining| remaining < length) {
                return Poll::Ready(Some(Err(io::Error::other(
                    "the input grew while it was being read",
                ))));
            }
            self.remaining = self.remaining.map(|remaining| remaining - length);
            self.progress.inc(length);
        }
        Poll::Ready(block.map(|block| block.map(|block| Frame::data(block.into()))))
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// The destination of a result. Unless [finished](Self::finish), a new file is removed and a file
/// behind standard output is truncated to its former length: an incomplete plaintext could be
/// mistaken for a complete one.
pub(super) struct Output {
    sink: Sink,
    name: String,
}

enum Sink {
    /// A temporary file, renamed to `target` when complete.
    New { file: NewFile, target: PathBuf },
    /// A file opened by the shell, and its length before.
    Redirected { file: File, length: u64 },
    /// A pipe or device, which can't be truncated.
    Pipe(Patient),
    /// The output was committed.
    Finished,
}

impl Output {
    /// Opens a file, or standard output if `path` is None.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, CliError> {
        match path {
            Some(path) => Self::file(path),
            None => Self::stdout().map_err(|error| {
                CliError::failed(format!("can't write to standard output: {error}"))
            }),
        }
    }

    fn file(path: &Path) -> Result<Self, CliError> {
        let failed = |error: io::Error| {
            CliError::failed(format!("can't write {}: {error}", path_for_display(path)))
        };
        // A symbolic link is kept, and its target is replaced.
        let target = files::resolve(path).map_err(failed)?;
        let former = fs::metadata(&target).ok();
        let name = path_for_display(path);
        if former.as_ref().is_some_and(|former| !former.is_file()) {
            // Devices and pipes are written to directly.
            let file = OpenOptions::new()
                .write(true)
                .open(&target)
                .map_err(failed)?;
            let sink = Sink::Pipe(file.into());
            return Ok(Self { sink, name });
        }
        let file = match former {
            // The umask applies, as it does to a file that a shell creates.
            None => NewFile::with_mode(&target, 0o666).map_err(failed)?,
            Some(former) => {
                let file = NewFile::beside(&target).map_err(failed)?;
                keep_access(file.file(), &former).map_err(failed)?;
                file
            }
        };
        let sink = Sink::New { file, target };
        Ok(Self { sink, name })
    }

    fn stdout() -> io::Result<Self> {
        let mut file = Patient::stdout()?.into_file();
        let metadata = file.metadata()?;
        let sink = if !metadata.is_file() {
            Sink::Pipe(file.into())
        } else if fcntl_getfl(&file)?.contains(OFlags::APPEND) {
            let length = metadata.len();
            Sink::Redirected { file, length }
        } else {
            let length = file.stream_position()?;
            Sink::Redirected { file, length }
        };
        let name = "standard output".into();
        Ok(Self { sink, name })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        let written = match &mut self.sink {
            Sink::New { file, .. } => file.write_all(bytes),
            Sink::Redirected { file, .. } => file.write_all(bytes),
            Sink::Pipe(pipe) => pipe.write_all(bytes),
            Sink::Finished => Err(io::Error::other("the output was already committed")),
        };
        written.map_err(|error| CliError::unwritable(&self.name, &error))
    }

    /// Commits the output.
    pub(super) fn finish(mut self) -> Result<(), CliError> {
        match mem::replace(&mut self.sink, Sink::Finished) {
            Sink::New { file, target } => file
                .persist(&target)
                .map_err(|error| CliError::failed(format!("can't write {}: {error}", self.name))),
            _ => Ok(()),
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let undone = match mem::replace(&mut self.sink, Sink::Finished) {
            Sink::New { file, .. } => file.discard(),
            Sink::Redirected { mut file, length } => file
                .set_len(length)
                .and_then(|()| file.seek(io::SeekFrom::Start(length)).map(drop)),
            Sink::Pipe(_) | Sink::Finished => Ok(()),
        };
        if let Err(error) = undone {
            note(format_args!(
                "incomplete output remains in {}: {error}",
                self.name
            ));
        }
    }
}

/// Gives a file the mode and group of the one that it replaces. A group that can't be kept has no
/// access to it, instead of another one.
fn keep_access(file: &File, former: &Metadata) -> io::Result<()> {
    let mode = former.mode() & 0o777;
    let given = match files::give(file, Some(former.gid()), mode, None) {
        Err((Attribute::Group, _)) => files::give(file, None, mode & !0o070, None),
        given => given,
    };
    given.map_err(|(_, error)| error)
}

/// A progress bar, hidden unless only standard error is a terminal.
pub(super) fn progress(length: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() || io::stdout().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match length {
        Some(length) => (
            ProgressBar::new(length),
            "{bar:40} {bytes} of {total_bytes} {binary_bytes_per_sec} {eta}",
        ),
        None => (
            ProgressBar::new_spinner(),
            "{spinner} {bytes} {binary_bytes_per_sec}",
        ),
    };
    // The templates above are valid.
    ProgressStyle::with_template(template)
        .map(|style| bar.clone().with_style(style))
        .unwrap_or(bar)
}
