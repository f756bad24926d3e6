//! One file: what it holds, and the file that takes its place.

use std::{
    io::{self, ErrorKind, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    str,
    sync::Arc,
};

use super::{
    Fault, Items,
    pieces::{Piece, Pieces, Step, peek_text},
    replacement::{Original, Refusal, Replacement},
    sidecar::{InForce, ItemError, Sidecar, WholeError},
    source::{Sink, Source},
};
use crate::{
    client::SidecarError,
    crypto::{OVERHEAD, PEEK_LEN, Peek, TEXT_PREFIX, peek},
    scan::{Progress, SHORTEST_TEXT, text_run},
};

/// How one file is rewrapped.
pub(super) struct Rewrite<'r, P> {
    pub(super) path: &'r Path,
    pub(super) in_force: InForce,
    pub(super) is_dry_run: bool,
    pub(super) progress: &'r P,
    pub(super) faults: &'r mut dyn FnMut(Fault),
}

/// Why a file is left as it is.
enum Left {
    Refused(Refusal),
    Stopped(SidecarError),
}

impl<E: Into<Refusal>> From<E> for Left {
    fn from(error: E) -> Self {
        Self::Refused(error.into())
    }
}

/// What a look at the whole file said.
#[derive(Default)]
struct Survey {
    /// The file itself is a ciphertext.
    is_whole: bool,
    /// It has bytes that no text has.
    is_binary: bool,
    /// What has to be rewrapped.
    stale: u64,
    /// What is too short to be.
    cut_off: u64,
}

enum Kind {
    Stale,
    Current,
    Foreign,
    CutOff,
}

impl<P: Fn(Progress)> Rewrite<'_, P> {
    /// Rewraps a file, and adds to `items` what became of its ciphertexts. Those of a file that could not be replaced failed.
    ///
    /// # Errors
    /// The sidecar does nothing more. The file is as it was.
    pub(super) async fn run(
        mut self,
        sidecar: &mut Sidecar,
        items: &mut Items,
    ) -> Result<u64, SidecarError> {
        let mut survey = Survey::default();
        let mut done = Items::default();
        let left = self.file(sidecar, &mut survey, &mut done).await.err();
        if left.is_some() {
            (done.rewrapped, done.failed) = (0, survey.stale + survey.cut_off);
        }
        items.rewrapped += done.rewrapped;
        items.current += done.current;
        items.foreign += done.foreign;
        items.failed += done.failed;
        match left {
            None => Ok(done.rewrapped),
            Some(Left::Refused(refusal)) => {
                self.fault(None, refusal.code(), refusal.to_string());
                Ok(0)
            }
            Some(Left::Stopped(error)) => Err(error),
        }
    }

    async fn file(
        &mut self,
        sidecar: &mut Sidecar,
        survey: &mut Survey,
        items: &mut Items,
    ) -> Result<(), Left> {
        let original = Original::open(self.path)?;
        self.survey(&original, survey, items)?;
        if survey.stale == 0 {
            return Ok(());
        }
        if survey.is_binary && !survey.is_whole {
            return Err(Refusal::Binary(survey.stale).into());
        }
        if self.is_dry_run {
            items.rewrapped = survey.stale;
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
            self.whole(sidecar, &source, None, &mut replacement, items)
                .await?;
        } else {
            self.text(sidecar, &original, &mut replacement, items)
                .await?;
        }
        // Otherwise it would be a copy of what is there.
        if items.rewrapped > 0 {
            replacement.commit(&original)?;
        }
        Ok(())
    }

    fn survey(
        &mut self,
        original: &Original,
        survey: &mut Survey,
        items: &mut Items,
    ) -> io::Result<()> {
        let mut first = [0; PEEK_LEN];
        let is_long = original.len() >= OVERHEAD as u64;
        if is_long {
            original.file.read_exact_at(&mut first, 0)?;
        }
        if let Some(header) =
            peek(&first).filter(|header| is_long && header.tag == self.in_force.tag)
        {
            survey.is_whole = true;
            match kind(self.in_force, header, SHORTEST_TEXT) {
                Kind::Stale => survey.stale = 1,
                _ => items.current = 1,
            }
            (self.progress)(Progress::Searched(original.len()));
            return Ok(());
        }
        let mut pieces = Pieces::new(&original.file);
        while let Some(step) = pieces.next()? {
            let tokens = match step {
                Step::Pieces(list, mut line) => {
                    let window = pieces.window();
                    survey.is_binary |= memchr::memchr(0, window).is_some();
                    let mut tokens = Vec::new();
                    for piece in list {
                        match piece {
                            Piece::Other(range) => line += lines(&window[range]),
                            Piece::Token(range, header) => {
                                tokens.push((header, range.len() - TEXT_PREFIX.len(), line))
                            }
                        }
                    }
                    tokens
                }
                Step::Giant(range, header, line) => {
                    vec![(header, (range.end - range.start) as usize, line)]
                }
            };
            for (header, len, line) in tokens {
                match kind(self.in_force, header, len) {
                    Kind::Stale => survey.stale += 1,
                    Kind::Current => items.current += 1,
                    Kind::Foreign => items.foreign += 1,
                    Kind::CutOff => {
                        survey.cut_off += 1;
                        items.failed += 1;
                        self.fault(
                            Some(line),
                            "cut_off",
                            format!("shorter than any ciphertext of version {}", header.version),
                        );
                    }
                }
            }
            (self.progress)(Progress::Searched(pieces.step_len()));
        }
        Ok(())
    }

    async fn text(
        &mut self,
        sidecar: &mut Sidecar,
        original: &Original,
        replacement: &mut Replacement,
        items: &mut Items,
    ) -> Result<(), Left> {
        let mut pieces = Pieces::new(&original.file);
        while let Some(step) = pieces.next()? {
            match step {
                Step::Pieces(list, mut line) => {
                    let (window, base) = (pieces.window(), pieces.base());
                    let in_force = self.in_force;
                    let is_stale = |range: &Range<usize>, header: &Peek| {
                        matches!(
                            kind(in_force, *header, range.len() - TEXT_PREFIX.len()),
                            Kind::Stale
                        )
                    };
                    let stale = list.iter().filter_map(|piece| match piece {
                        Piece::Token(range, header) if is_stale(range, header) => {
                            str::from_utf8(&window[range.clone()]).ok()
                        }
                        _ => None,
                    });
                    let mut answers = self
                        .rewrapped(sidecar, &stale.collect::<Vec<_>>())
                        .await?
                        .into_iter();
                    for piece in list {
                        match piece {
                            Piece::Other(range) => {
                                line += lines(&window[range.clone()]);
                                replacement.write_all(&window[range])?;
                            }
                            Piece::Token(range, header) => {
                                match is_stale(&range, &header).then(|| answers.next()).flatten() {
                                    Some(Ok(text)) => {
                                        items.rewrapped += 1;
                                        replacement.write_all(text.as_bytes())?;
                                    }
                                    // A stream, or a message that has no room beside its AAD.
                                    Some(Err(error)) if error.code == "body_too_large" => {
                                        let range =
                                            base + range.start as u64..base + range.end as u64;
                                        self.giant(
                                            sidecar,
                                            original,
                                            range,
                                            Some(line),
                                            replacement,
                                            items,
                                        )
                                        .await?;
                                    }
                                    other => {
                                        replacement.write_all(&window[range])?;
                                        if let Some(Err(error)) = other {
                                            items.failed += 1;
                                            self.fault(Some(line), &error.code, error.message);
                                        }
                                    }
                                }
                            }
                        }
                    }
                    (self.progress)(Progress::Searched(pieces.step_len()));
                }
                Step::Giant(range, header, line) => {
                    let is_stale =
                        matches!(kind(self.in_force, header, SHORTEST_TEXT), Kind::Stale);
                    self.giant(
                        sidecar,
                        original,
                        range,
                        is_stale.then_some(line),
                        replacement,
                        items,
                    )
                    .await?;
                }
            }
        }
        Ok(())
    }

    /// Rewraps the text form at a place in the file on its own, if the line is given that it is in, and else copies it.
    async fn giant(
        &mut self,
        sidecar: &mut Sidecar,
        original: &Original,
        range: Range<u64>,
        stale_line: Option<u64>,
        replacement: &mut Replacement,
        items: &mut Items,
    ) -> Result<(), Left> {
        let file = Arc::clone(&original.file);
        let source = Source {
            file,
            from: range.start + TEXT_PREFIX.len() as u64,
            to: range.end,
            is_text: true,
        };
        let before = items.rewrapped;
        if stale_line.is_some() {
            self.whole(sidecar, &source, stale_line, replacement, items)
                .await?;
        }
        if items.rewrapped == before {
            copy(&source, range.start, replacement)?;
        }
        Ok(())
    }

    /// Rewraps items, and looks at the answers before they are written among other data.
    async fn rewrapped(
        &self,
        sidecar: &mut Sidecar,
        stale: &[&str],
    ) -> Result<Vec<Result<String, ItemError>>, Left> {
        let answers = sidecar.items(stale).await.map_err(Left::Stopped)?;
        let is_ours = |answer: &str| {
            let text = answer
                .strip_prefix(TEXT_PREFIX)
                .unwrap_or_default()
                .as_bytes();
            text_run(text, text.len()) == text.len()
                && peek_text(text).is_some_and(|header| header.tag == self.in_force.tag)
        };
        if answers.iter().flatten().all(|answer| is_ours(answer)) {
            return Ok(answers);
        }
        Err(Left::Stopped(SidecarError::Unexpected(
            "what came back is no ciphertext of this keyring".into(),
        )))
    }

    /// Rewraps one ciphertext of any length. If it fails, nothing of it is in the replacement.
    async fn whole(
        &mut self,
        sidecar: &mut Sidecar,
        source: &Source,
        line: Option<u64>,
        replacement: &mut Replacement,
        items: &mut Items,
    ) -> Result<(), Left> {
        let position = replacement.position()?;
        if source.is_text {
            replacement.write_all(TEXT_PREFIX.as_bytes())?;
        }
        let result = if source.ends_well()? {
            let mut sink = Sink::new(&mut *replacement, source.is_text);
            let progress = |bytes| (self.progress)(Progress::Searched(bytes));
            match sidecar
                .whole(source, self.in_force, &mut sink, progress)
                .await
            {
                Ok(()) => sink.finish().map(|()| None)?,
                Err(WholeError::Item(error)) => Some(error),
                Err(WholeError::Sidecar(error)) => return Err(Left::Stopped(error)),
                Err(WholeError::File(error)) => return Err(error.into()),
            }
        } else {
            Some(ItemError {
                code: "malformed_ciphertext".into(),
                message: "its last characters are no base64url".into(),
            })
        };
        match result {
            None => items.rewrapped += 1,
            Some(error) => {
                replacement.rewind(position)?;
                items.failed += 1;
                self.fault(line, &error.code, error.message);
            }
        }
        Ok(())
    }

    fn fault(&mut self, line: Option<u64>, code: &str, message: String) {
        (self.faults)(Fault {
            path: self.path.into(),
            line,
            code: code.into(),
            message,
        });
    }
}

fn kind(in_force: InForce, header: Peek, text_len: usize) -> Kind {
    if header.tag != in_force.tag {
        Kind::Foreign
    } else if text_len < SHORTEST_TEXT {
        Kind::CutOff
    } else if header.version == in_force.primary {
        Kind::Current
    } else {
        Kind::Stale
    }
}

fn lines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}

/// Copies from a position to the source's end.
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
