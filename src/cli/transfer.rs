//! Files and standard input through the sidecar, as they come: memory doesn't grow with them, and no half of a result is left behind.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Read, Seek, Write},
    mem,
    os::fd::AsFd,
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

use super::{output::Failure, shown};
use crate::files::{self, NewFile};

/// How much is read at once.
const BLOCK: usize = 256 << 10;
/// How many blocks wait to be sent.
const AHEAD: usize = 2;

/// Where bytes come from.
pub(super) struct Input {
    source: Box<dyn Read + Send>,
    /// How many there are, if that is known.
    pub(super) length: Option<u64>,
    name: String,
}

impl Input {
    /// A file, or standard input.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let name = path.map_or_else(|| "standard input".into(), shown);
        let failed = |error| unreadable(&name, &error);
        let mut file = match path {
            Some(path) => File::open(path).map_err(failed)?,
            None => File::from(io::stdin().as_fd().try_clone_to_owned().map_err(failed)?),
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
            source: Box::new(file),
            length,
            name,
        })
    }

    /// Up to `length` bytes; fewer only at the end.
    pub(super) fn take(&mut self, length: usize) -> Result<Vec<u8>, Failure> {
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

    /// A request's body: `head`, which was taken already, and the rest while it is read.
    pub(super) fn into_body(self, head: Vec<u8>, progress: &ProgressBar) -> Upload {
        let (sender, blocks) = mpsc::channel(AHEAD);
        let Self {
            mut source,
            length,
            name,
        } = self;
        // Some files say that they are empty and are not, those of /proc for example.
        let remaining = length.filter(|length| *length >= head.len() as u64);
        // Reading may block for as long as it likes; it ends when nobody takes the blocks any more.
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

fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::failed(format!("can't read {name}: {error}"))
}

/// A request's body that is read while it is sent.
pub(super) struct Upload {
    blocks: mpsc::Receiver<io::Result<Vec<u8>>>,
    remaining: Option<u64>,
    progress: ProgressBar,
}

impl Upload {
    /// One whose blocks somebody else makes.
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
                    "the input grew while it was read",
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

/// Where a result goes. Unless it is [finished](Self::finish), a file is not made, and what went to a file behind standard output is
/// taken back: half a plaintext that looks like a whole one would be worse than none.
pub(super) struct Output {
    sink: Sink,
    name: String,
}

enum Sink {
    /// A file of our own, renamed to `target` when it is complete.
    New { file: NewFile, target: PathBuf },
    /// A file that somebody opened for us, and how long it was.
    Redirected { file: File, length: u64 },
    /// What can't be taken back.
    Pipe(File),
    /// The result is complete.
    Finished,
}

impl Output {
    /// A file, or standard output.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, Failure> {
        match path {
            Some(path) => Self::file(path),
            None => Self::stdout().map_err(|error| {
                Failure::failed(format!("can't write to standard output: {error}"))
            }),
        }
    }

    fn file(path: &Path) -> Result<Self, Failure> {
        let failed =
            |error: io::Error| Failure::failed(format!("can't write {}: {error}", shown(path)));
        // A link stays, and what it points to is exchanged.
        let target = files::resolve(path).map_err(failed)?;
        let former = fs::metadata(&target).ok();
        let name = shown(path);
        if former.as_ref().is_some_and(|former| !former.is_file()) {
            // A device or a pipe is written to; nothing of it can be taken back.
            let file = OpenOptions::new()
                .write(true)
                .open(&target)
                .map_err(failed)?;
            let sink = Sink::Pipe(file);
            return Ok(Self { sink, name });
        }
        // The umask applies, as it does to a file that a shell creates.
        let file = NewFile::with_mode(&target, 0o666).map_err(failed)?;
        if let Some(former) = former {
            file.file()
                .set_permissions(former.permissions())
                .map_err(failed)?;
        }
        let sink = Sink::New { file, target };
        Ok(Self { sink, name })
    }

    fn stdout() -> io::Result<Self> {
        let mut file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let metadata = file.metadata()?;
        let sink = if !metadata.is_file() {
            Sink::Pipe(file)
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

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = match &mut self.sink {
            Sink::New { file, .. } => file.write_all(bytes),
            Sink::Redirected { file, .. } | Sink::Pipe(file) => file.write_all(bytes),
            Sink::Finished => Err(io::Error::other("the result is complete already")),
        };
        written.map_err(|error| Failure::failed(format!("can't write to {}: {error}", self.name)))
    }

    /// Keeps what was written.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        match mem::replace(&mut self.sink, Sink::Finished) {
            Sink::New { file, target } => file
                .persist(&target)
                .map_err(|error| Failure::failed(format!("can't write {}: {error}", self.name))),
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
            eprintln!(
                "sidekey: part of a result is left in {}: {error}",
                self.name
            );
        }
    }
}

/// A bar on a terminal, nothing elsewhere.
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
