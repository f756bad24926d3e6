//! Writes the replacement of a file: its bytes, with every stale ciphertext rewrapped.

use std::{
    io::{self, ErrorKind, Write},
    ops::Range,
    os::unix::fs::FileExt,
    str,
    sync::Arc,
};

use super::{
    Counts,
    file::{Failures, Unchanged},
    replacement::{Original, Replacement},
    segments::{Segment, Segments, Step, peek_text, text_len},
    sidecar::{ActiveKeyring, ItemError, Sidecar, SingleError},
    source::{Sink, Source},
    survey::{Kind, lines},
};
use crate::{
    client::SidecarError,
    crypto::{Peek, TEXT_PREFIX},
    scan::{Progress, SHORTEST_TEXT, text_run},
};

/// A replacement while it is written.
pub(super) struct Rewrite<'w, 'f, P> {
    pub(super) sidecar: &'w mut Sidecar,
    pub(super) active: ActiveKeyring,
    pub(super) original: &'w Original,
    pub(super) replacement: Replacement,
    pub(super) counts: &'w mut Counts,
    pub(super) progress: &'w P,
    pub(super) failures: &'w mut Failures<'f>,
}

impl<P: Fn(Progress)> Rewrite<'_, '_, P> {
    /// Writes a text file, window by window.
    pub(super) async fn text(&mut self) -> Result<(), Unchanged> {
        let mut segments = Segments::new(&self.original.file);
        while let Some(step) = segments.next()? {
            match step {
                Step::Window(list, line) => {
                    self.window(segments.window(), segments.base(), list, line)
                        .await?;
                    (self.progress)(Progress::Searched(segments.step_len()));
                }
                Step::Oversized(range, header, line) => {
                    let kind = Kind::of(self.active, header, SHORTEST_TEXT);
                    self.oversized(range, (kind == Kind::Stale).then_some(line))
                        .await?;
                }
            }
        }
        Ok(())
    }

    /// Writes the segments of a window, which starts at the offset `base` and in `line`.
    async fn window(
        &mut self,
        window: &[u8],
        base: u64,
        segments: Vec<Segment>,
        mut line: u64,
    ) -> Result<(), Unchanged> {
        let stale = segments.iter().filter_map(|segment| match segment {
            Segment::Ciphertext(range, header) if self.is_stale(range, *header) => {
                str::from_utf8(&window[range.clone()]).ok()
            }
            _ => None,
        });
        let stale: Vec<_> = stale.collect();
        let mut results = self.rewrapped(&stale).await?.into_iter();
        for segment in segments {
            match segment {
                Segment::Other(range) => {
                    line += lines(&window[range.clone()]);
                    self.replacement.write_all(&window[range])?;
                }
                Segment::Ciphertext(range, header) => {
                    let is_stale = self.is_stale(&range, header);
                    let result = is_stale.then(|| results.next()).flatten();
                    let at = base + range.start as u64;
                    self.ciphertext(&window[range], at, line, result).await?;
                }
            }
        }
        Ok(())
    }

    fn is_stale(&self, range: &Range<usize>, header: Peek) -> bool {
        Kind::of(self.active, header, text_len(range)) == Kind::Stale
    }

    /// Writes the result for the ciphertext `text` at an offset and line, or the ciphertext itself
    /// if there is no result.
    async fn ciphertext(
        &mut self,
        text: &[u8],
        at: u64,
        line: u64,
        result: Option<Result<String, ItemError>>,
    ) -> Result<(), Unchanged> {
        match result {
            None => self.replacement.write_all(text)?,
            Some(Ok(rewrapped)) => {
                self.counts.rewrapped += 1;
                self.replacement.write_all(rewrapped.as_bytes())?;
            }
            // A stream, or a message too long for a batch with its AAD.
            Some(Err(error)) if error.code == "body_too_large" => {
                self.oversized(at..at + text.len() as u64, Some(line))
                    .await?;
            }
            Some(Err(error)) => {
                self.replacement.write_all(text)?;
                self.counts.failed += 1;
                self.failures.add(Some(line), &error.code, error.message);
            }
        }
        Ok(())
    }

    /// Rewraps the text form in a range of the file alone if its line is given, and copies it
    /// otherwise.
    async fn oversized(
        &mut self,
        range: Range<u64>,
        stale_line: Option<u64>,
    ) -> Result<(), Unchanged> {
        let source = Source {
            file: Arc::clone(&self.original.file),
            from: range.start + TEXT_PREFIX.len() as u64,
            to: range.end,
            is_text: true,
        };
        let before = self.counts.rewrapped;
        if stale_line.is_some() {
            self.single(&source, stale_line).await?;
        }
        if self.counts.rewrapped == before {
            copy(&source, range.start, &mut self.replacement)?;
        }
        Ok(())
    }

    /// Rewraps texts, and verifies the results before they are written among other data.
    async fn rewrapped(
        &mut self,
        stale: &[&str],
    ) -> Result<Vec<Result<String, ItemError>>, Unchanged> {
        let results = self
            .sidecar
            .rewrap_texts(stale)
            .await
            .map_err(Unchanged::Sidecar)?;
        let is_ours = |result: &str| {
            let text = result
                .strip_prefix(TEXT_PREFIX)
                .unwrap_or_default()
                .as_bytes();
            text_run(text, text.len()) == text.len()
                && peek_text(text).is_some_and(|header| header.tag == self.active.tag)
        };
        if results.iter().flatten().all(|result| is_ours(result)) {
            return Ok(results);
        }
        Err(Unchanged::Sidecar(SidecarError::Unexpected(
            "a result is not a ciphertext of this keyring".into(),
        )))
    }

    /// Rewraps one ciphertext of any length. If that fails, the replacement contains nothing of it.
    pub(super) async fn single(
        &mut self,
        source: &Source,
        line: Option<u64>,
    ) -> Result<(), Unchanged> {
        let position = self.replacement.position()?;
        if source.is_text {
            self.replacement.write_all(TEXT_PREFIX.as_bytes())?;
        }
        let result = if source.ends_well()? {
            let mut sink = Sink::new(&mut self.replacement, source.is_text);
            let progress = |bytes| (self.progress)(Progress::Searched(bytes));
            match self
                .sidecar
                .rewrap_single(source, self.active, &mut sink, progress)
                .await
            {
                Ok(()) => sink.finish().map(|()| None)?,
                Err(SingleError::Item(error)) => Some(error),
                Err(SingleError::Sidecar(error)) => return Err(Unchanged::Sidecar(error)),
                Err(SingleError::File(error)) => return Err(error.into()),
            }
        } else {
            Some(ItemError {
                code: "malformed_ciphertext".into(),
                message: "the last characters are not base64url".into(),
            })
        };
        match result {
            None => self.counts.rewrapped += 1,
            Some(error) => {
                self.replacement.rewind(position)?;
                self.counts.failed += 1;
                self.failures.add(line, &error.code, error.message);
            }
        }
        Ok(())
    }
}

/// Copies a file from an offset to the end of the source.
fn copy(source: &Source, mut at: u64, out: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    while at < source.to {
        let most = (source.to - at).min(buffer.len() as u64) as usize;
        match source.file.read_at(&mut buffer[..most], at) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                out.write_all(&buffer[..read])?;
                at += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
