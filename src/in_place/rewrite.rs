//! Rewraps the ciphertexts of one file.

use std::{
    io::{self, ErrorKind, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    str,
    sync::Arc,
};

use super::{
    Counts, Failure,
    replacement::{FileError, Original, Replacement},
    segments::{Segment, Segments, Step, peek_text},
    sidecar::{ActiveKeyring, ItemError, Sidecar, SingleError},
    source::{Sink, Source},
};
use crate::{
    client::SidecarError,
    crypto::{OVERHEAD, PEEK_LEN, Peek, TEXT_PREFIX, peek},
    scan::{Progress, SHORTEST_TEXT, text_run},
};

/// The rewrap of one file.
pub(super) struct Rewrite<'r, P> {
    pub(super) path: &'r Path,
    pub(super) active: ActiveKeyring,
    pub(super) is_dry_run: bool,
    pub(super) progress: &'r P,
    pub(super) failures: &'r mut dyn FnMut(Failure),
}

/// The file is left unchanged.
enum Unchanged {
    /// The run continues with the next file.
    File(FileError),
    /// The run stops.
    Sidecar(SidecarError),
}

impl<E: Into<FileError>> From<E> for Unchanged {
    fn from(error: E) -> Self {
        Self::File(error.into())
    }
}

/// What the file contains.
#[derive(Default)]
struct Survey {
    /// The file as a whole is a ciphertext.
    is_whole: bool,
    /// It contains bytes that text doesn't contain.
    is_binary: bool,
    /// How many ciphertexts must be rewrapped.
    stale: u64,
    /// How many ciphertexts are cut off.
    cut_off: u64,
}

enum Kind {
    Stale,
    Current,
    OtherKeyring,
    CutOff,
}

impl<P: Fn(Progress)> Rewrite<'_, P> {
    /// Rewraps a file, and adds its ciphertexts to `counts`: as failed, if the file can't be
    /// replaced. Returns how many were rewrapped.
    ///
    /// # Errors
    /// The sidecar can't continue. The file is unchanged.
    pub(super) async fn run(
        mut self,
        sidecar: &mut Sidecar,
        counts: &mut Counts,
    ) -> Result<u64, SidecarError> {
        let mut survey = Survey::default();
        let mut own = Counts::default();
        let left = self.file(sidecar, &mut survey, &mut own).await.err();
        if left.is_some() {
            (own.rewrapped, own.failed) = (0, survey.stale + survey.cut_off);
        }
        counts.rewrapped += own.rewrapped;
        counts.current += own.current;
        counts.foreign += own.foreign;
        counts.failed += own.failed;
        match left {
            None => Ok(own.rewrapped),
            Some(Unchanged::File(error)) => {
                self.fail(None, error.code(), error.to_string());
                Ok(0)
            }
            Some(Unchanged::Sidecar(error)) => Err(error),
        }
    }

    async fn file(
        &mut self,
        sidecar: &mut Sidecar,
        survey: &mut Survey,
        counts: &mut Counts,
    ) -> Result<(), Unchanged> {
        let original = Original::open(self.path)?;
        self.survey(&original, survey, counts)?;
        if survey.stale == 0 {
            return Ok(());
        }
        if survey.is_binary && !survey.is_whole {
            return Err(FileError::Binary(survey.stale).into());
        }
        if self.is_dry_run {
            counts.rewrapped = survey.stale;
            return Ok(());
        }
        (self.progress)(Progress::Found(original.len()));
        let mut replacement = Replacement::of(&original)?;
        if survey.is_whole {
            let source = Source {
                file: Arc::clone(&original.file),
                from: 0,
                to: original.len(),
                is_text: false,
            };
            self.single(sidecar, &source, None, &mut replacement, counts)
                .await?;
        } else {
            self.text(sidecar, &original, &mut replacement, counts)
                .await?;
        }
        // Otherwise the replacement equals the original.
        if counts.rewrapped > 0 {
            replacement.commit(&original)?;
        }
        Ok(())
    }

    fn survey(
        &mut self,
        original: &Original,
        survey: &mut Survey,
        counts: &mut Counts,
    ) -> io::Result<()> {
        let mut first = [0; PEEK_LEN];
        let is_long = original.len() >= OVERHEAD as u64;
        if is_long {
            original.file.read_exact_at(&mut first, 0)?;
        }
        if let Some(header) = peek(&first).filter(|header| is_long && header.tag == self.active.tag)
        {
            survey.is_whole = true;
            match kind(self.active, header, SHORTEST_TEXT) {
                Kind::Stale => survey.stale = 1,
                _ => counts.current = 1,
            }
            (self.progress)(Progress::Searched(original.len()));
            return Ok(());
        }
        let mut segments = Segments::new(&original.file);
        while let Some(step) = segments.next()? {
            let found = match step {
                Step::Window(list, mut line) => {
                    let window = segments.window();
                    survey.is_binary |= memchr::memchr(0, window).is_some();
                    let mut found = Vec::new();
                    for segment in list {
                        match segment {
                            Segment::Other(range) => line += lines(&window[range]),
                            Segment::Ciphertext(range, header) => {
                                found.push((header, range.len() - TEXT_PREFIX.len(), line))
                            }
                        }
                    }
                    found
                }
                Step::Oversized(range, header, line) => {
                    vec![(header, (range.end - range.start) as usize, line)]
                }
            };
            for (header, len, line) in found {
                match kind(self.active, header, len) {
                    Kind::Stale => survey.stale += 1,
                    Kind::Current => counts.current += 1,
                    Kind::OtherKeyring => counts.foreign += 1,
                    Kind::CutOff => {
                        survey.cut_off += 1;
                        counts.failed += 1;
                        self.fail(
                            Some(line),
                            "cut_off",
                            format!("shorter than any ciphertext of version {}", header.version),
                        );
                    }
                }
            }
            (self.progress)(Progress::Searched(segments.step_len()));
        }
        Ok(())
    }

    async fn text(
        &mut self,
        sidecar: &mut Sidecar,
        original: &Original,
        replacement: &mut Replacement,
        counts: &mut Counts,
    ) -> Result<(), Unchanged> {
        let mut segments = Segments::new(&original.file);
        while let Some(step) = segments.next()? {
            match step {
                Step::Window(list, mut line) => {
                    let (window, base) = (segments.window(), segments.base());
                    let active = self.active;
                    let is_stale = |range: &Range<usize>, header: &Peek| {
                        matches!(
                            kind(active, *header, range.len() - TEXT_PREFIX.len()),
                            Kind::Stale
                        )
                    };
                    let stale = list.iter().filter_map(|segment| match segment {
                        Segment::Ciphertext(range, header) if is_stale(range, header) => {
                            str::from_utf8(&window[range.clone()]).ok()
                        }
                        _ => None,
                    });
                    let mut results = self
                        .rewrapped(sidecar, &stale.collect::<Vec<_>>())
                        .await?
                        .into_iter();
                    for segment in list {
                        match segment {
                            Segment::Other(range) => {
                                line += lines(&window[range.clone()]);
                                replacement.write_all(&window[range])?;
                            }
                            Segment::Ciphertext(range, header) => {
                                match is_stale(&range, &header).then(|| results.next()).flatten() {
                                    Some(Ok(text)) => {
                                        counts.rewrapped += 1;
                                        replacement.write_all(text.as_bytes())?;
                                    }
                                    // A stream, or a message too long for a batch with its AAD.
                                    Some(Err(error)) if error.code == "body_too_large" => {
                                        let range =
                                            base + range.start as u64..base + range.end as u64;
                                        self.oversized(
                                            sidecar,
                                            original,
                                            range,
                                            Some(line),
                                            replacement,
                                            counts,
                                        )
                                        .await?;
                                    }
                                    other => {
                                        replacement.write_all(&window[range])?;
                                        if let Some(Err(error)) = other {
                                            counts.failed += 1;
                                            self.fail(Some(line), &error.code, error.message);
                                        }
                                    }
                                }
                            }
                        }
                    }
                    (self.progress)(Progress::Searched(segments.step_len()));
                }
                Step::Oversized(range, header, line) => {
                    let is_stale = matches!(kind(self.active, header, SHORTEST_TEXT), Kind::Stale);
                    self.oversized(
                        sidecar,
                        original,
                        range,
                        is_stale.then_some(line),
                        replacement,
                        counts,
                    )
                    .await?;
                }
            }
        }
        Ok(())
    }

    /// Rewraps the text form in a range of the file alone if its line is given, and copies it
    /// otherwise.
    async fn oversized(
        &mut self,
        sidecar: &mut Sidecar,
        original: &Original,
        range: Range<u64>,
        stale_line: Option<u64>,
        replacement: &mut Replacement,
        counts: &mut Counts,
    ) -> Result<(), Unchanged> {
        let file = Arc::clone(&original.file);
        let source = Source {
            file,
            from: range.start + TEXT_PREFIX.len() as u64,
            to: range.end,
            is_text: true,
        };
        let before = counts.rewrapped;
        if stale_line.is_some() {
            self.single(sidecar, &source, stale_line, replacement, counts)
                .await?;
        }
        if counts.rewrapped == before {
            copy(&source, range.start, replacement)?;
        }
        Ok(())
    }

    /// Rewraps texts, and verifies the results before they are written among other data.
    async fn rewrapped(
        &self,
        sidecar: &mut Sidecar,
        stale: &[&str],
    ) -> Result<Vec<Result<String, ItemError>>, Unchanged> {
        let results = sidecar
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
    async fn single(
        &mut self,
        sidecar: &mut Sidecar,
        source: &Source,
        line: Option<u64>,
        replacement: &mut Replacement,
        counts: &mut Counts,
    ) -> Result<(), Unchanged> {
        let position = replacement.position()?;
        if source.is_text {
            replacement.write_all(TEXT_PREFIX.as_bytes())?;
        }
        let result = if source.ends_well()? {
            let mut sink = Sink::new(&mut *replacement, source.is_text);
            let progress = |bytes| (self.progress)(Progress::Searched(bytes));
            match sidecar
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
            None => counts.rewrapped += 1,
            Some(error) => {
                replacement.rewind(position)?;
                counts.failed += 1;
                self.fail(line, &error.code, error.message);
            }
        }
        Ok(())
    }

    fn fail(&mut self, line: Option<u64>, code: &str, message: String) {
        (self.failures)(Failure {
            path: self.path.into(),
            line,
            code: code.into(),
            message,
        });
    }
}

fn kind(active: ActiveKeyring, header: Peek, text_len: usize) -> Kind {
    if header.tag != active.tag {
        Kind::OtherKeyring
    } else if text_len < SHORTEST_TEXT {
        Kind::CutOff
    } else if header.version == active.primary {
        Kind::Current
    } else {
        Kind::Stale
    }
}

fn lines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
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
