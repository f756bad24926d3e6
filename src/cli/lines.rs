//! Files of lines through the sidecar: every line is an item of a binary batch, and one bad line costs itself alone.

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
    output::Failure,
    transfer::{Input, Output, Upload},
};
use crate::{
    client::Problem,
    crypto::{from_text, to_text},
    wire::{DONE, Frame, Frames, SHARED_AAD},
};

const BLOCK: usize = 256 << 10;
const AHEAD: usize = 2;

/// What stands on a line of the input, and of the output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Plaintext,
    Ciphertext,
}

/// A batch of the input's lines, made while it is sent; `sent` counts them.
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
                    // Whoever sends the request hears of it there.
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
        // What is no text form becomes an empty item, which the sidecar calls malformed in its turn.
        Line::Ciphertext => {
            decoded = std::str::from_utf8(text)
                .ok()
                .and_then(|text| from_text(text.trim_end_matches('\r')).ok());
            decoded.as_deref().unwrap_or_default()
        }
    };
    // Longer lines are refused by the sidecar long before.
    block.extend_from_slice(&u32::try_from(item.len()).unwrap_or(u32::MAX).to_be_bytes());
    block.extend_from_slice(item);
}

/// Writes the answer to a batch as lines.
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

    /// Goes on with more of the answer.
    pub(super) fn write(&mut self, piece: &Bytes, output: &mut Output) -> Result<(), Failure> {
        let mut data = &piece[..];
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
                    Err("it has a line break inside; decrypt it on its own".into())
                }
                (Some((_, problem)), _) => Err(match serde_json::from_slice::<Problem>(problem) {
                    Ok(problem) => format!("{} ({})", problem.detail, problem.code),
                    Err(_) => "the sidecar's answer is not understood".into(),
                }),
                (None, _) => Err("the sidecar's answer is empty".into()),
            };
            if let Err(reason) = result {
                self.failed += 1;
                eprintln!("sidekey: line {}: {reason}", self.seen);
            }
            // A line that failed stays empty, so that the others keep their numbers.
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

    /// Whether every one of `sent` lines was answered. What isn't may look whole and isn't.
    pub(super) fn check_whole(&self, sent: u64) -> Result<(), Failure> {
        if self.seen == sent && self.frames.is_between_frames() {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "the answer ended early: {} of {sent} lines were answered",
            self.seen
        )))
    }

    /// What is to be said at the end.
    pub(super) fn finish(self) -> Result<(), Failure> {
        if self.failed == 0 {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "{} of {} lines failed and are empty in the result",
            self.failed, self.seen
        )))
    }
}
