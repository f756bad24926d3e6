//! `--lines`: each line is an item of a binary batch, and a line that fails doesn't affect others.

use std::{
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    output::{CliError, note},
    transfer::{Input, Output, Upload},
};
use crate::{
    client::Problem,
    crypto::{from_text, to_text},
    wire::{DONE, Frame, Frames, SHARED_AAD},
};

/// Read size in bytes.
const BLOCK: usize = 256 << 10;
/// Blocks that are read ahead of sending.
const AHEAD: usize = 2;

/// The content of a line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Plaintext,
    Ciphertext,
}

/// Encodes the input's lines as a batch while it is sent; `sent` counts them.
pub(super) fn upload(input: Input, line: Line, sent: &Arc<AtomicU64>) -> Upload {
    let sent = Arc::clone(sent);
    let (sender, blocks) = mpsc::channel(AHEAD);
    let mut source = input.into_source();
    thread::spawn(move || {
        let mut block = vec![SHARED_AAD];
        let mut lines = Vec::new();
        loop {
            let start = lines.len();
            lines.resize(start + BLOCK, 0);
            let read = match source.read(&mut lines[start..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    lines.truncate(start);
                    continue;
                }
                Err(error) => {
                    // The request fails with this error; if the receiver is gone, it failed
                    // already.
                    let _ = sender.blocking_send(Err(error));
                    return;
                }
                Ok(read) => read,
            };
            lines.truncate(start + read);
            let mut rest = &lines[..];
            while let Some(end) = memchr::memchr(b'\n', rest) {
                append(&mut block, line, &rest[..end]);
                sent.fetch_add(1, Ordering::Relaxed);
                rest = &rest[end + 1..];
            }
            if read == 0 && !rest.is_empty() {
                append(&mut block, line, rest);
                sent.fetch_add(1, Ordering::Relaxed);
                rest = &[];
            }
            let consumed = lines.len() - rest.len();
            lines.drain(..consumed);
            if !block.is_empty()
                && sender
                    .blocking_send(Ok(std::mem::take(&mut block)))
                    .is_err()
                || read == 0
            {
                return;
            }
        }
    });
    Upload::from_blocks(blocks)
}

fn append(block: &mut Vec<u8>, line: Line, text: &[u8]) {
    let decoded;
    let item = match line {
        Line::Plaintext => text,
        // An invalid text form becomes an empty item, which the sidecar rejects as malformed.
        Line::Ciphertext => {
            decoded = std::str::from_utf8(text)
                .ok()
                .and_then(|text| from_text(text.trim_end_matches('\r')).ok());
            decoded.as_deref().unwrap_or_default()
        }
    };
    // The sidecar's limits are far below u32::MAX.
    block.extend_from_slice(&u32::try_from(item.len()).unwrap_or(u32::MAX).to_be_bytes());
    block.extend_from_slice(item);
}

/// Writes the results of a batch as lines.
pub(super) struct Lines {
    frames: Frames,
    line: Line,
    seen: u64,
    failed: u64,
    text: Vec<u8>,
}

impl Lines {
    pub(super) fn new(line: Line) -> Self {
        Self {
            frames: Frames::new(u32::MAX as usize),
            line,
            seen: 0,
            failed: 0,
            text: Vec::new(),
        }
    }

    /// Writes the lines that `chunk` completes.
    pub(super) fn write(&mut self, chunk: &Bytes, output: &mut Output) -> Result<(), CliError> {
        let mut data = &chunk[..];
        while let Some(Frame::Whole(frame)) = self.frames.next(&mut data) {
            self.seen += 1;
            let result = match (frame.split_first(), self.line) {
                (Some((&DONE, item)), Line::Ciphertext) => {
                    self.text.extend_from_slice(to_text(item).as_bytes());
                    Ok(())
                }
                (Some((&DONE, item)), Line::Plaintext) if memchr::memchr(b'\n', item).is_none() => {
                    self.text.extend_from_slice(item);
                    Ok(())
                }
                (Some((&DONE, _)), Line::Plaintext) => {
                    Err("the plaintext contains a line break; decrypt it without --lines".into())
                }
                (Some((_, problem)), _) => Err(match serde_json::from_slice::<Problem>(problem) {
                    Ok(problem) => format!("{} ({})", problem.detail, problem.code),
                    Err(_) => "unexpected response from the sidecar".into(),
                }),
                (None, _) => Err("empty result from the sidecar".into()),
            };
            if let Err(reason) = result {
                self.failed += 1;
                note(format_args!("line {}: {reason}", self.seen));
            }
            // A failed line stays empty, so that line numbers match the input.
            self.text.push(b'\n');
            if self.text.len() >= BLOCK {
                output.write(&self.text)?;
                self.text.clear();
            }
        }
        output.write(&self.text)?;
        self.text.clear();
        Ok(())
    }

    /// Fails if the response was truncated: fewer results than the `sent` lines.
    pub(super) fn check_complete(&self, sent: u64) -> Result<(), CliError> {
        if self.seen == sent && self.frames.is_between_frames() {
            return Ok(());
        }
        Err(CliError::failed(format!(
            "the response was truncated: {} results for {sent} lines",
            self.seen
        )))
    }

    /// Fails if any line failed.
    pub(super) fn finish(self) -> Result<(), CliError> {
        if self.failed == 0 {
            return Ok(());
        }
        Err(CliError::failed(format!(
            "{} of {} lines failed and are empty in the output",
            self.failed, self.seen
        )))
    }
}
