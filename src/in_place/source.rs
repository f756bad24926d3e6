//! A ciphertext in a file as a request body, read as it is sent, and the sink for its replacement.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// How much is read at once. A multiple of four, so that each part of a text form can be decoded.
const CHUNK: u64 = 64 << 10;

/// A ciphertext in a file.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) file: Arc<File>,
    /// The range in the file, in bytes. For a text form, without `sk1.`.
    pub(super) from: u64,
    pub(super) to: u64,
    /// Whether it is base64url, which is decoded before it is sent.
    pub(super) is_text: bool,
}

impl Source {
    /// Returns the length of the body, in bytes.
    fn len(&self) -> u64 {
        let len = self.to - self.from;
        if self.is_text {
            len / 4 * 3 + (len % 4).saturating_sub(1)
        } else {
            len
        }
    }

    /// Returns whether the last characters of a text form are valid.
    pub(super) fn ends_well(&self) -> io::Result<bool> {
        if !self.is_text {
            return Ok(true);
        }
        let mut last = [0; 3];
        let last = &mut last[..((self.to - self.from) % 4) as usize];
        self.file.read_exact_at(last, self.to - last.len() as u64)?;
        Ok(URL_SAFE_NO_PAD.decode(last).is_ok())
    }

    fn read(&mut self) -> io::Result<Option<Bytes>> {
        let len = (self.to - self.from).min(CHUNK);
        if len == 0 {
            return Ok(None);
        }
        let mut chunk = vec![0; len as usize];
        self.file.read_exact_at(&mut chunk, self.from)?;
        self.from += len;
        if self.is_text {
            let decoded = URL_SAFE_NO_PAD.decode(&chunk);
            chunk = decoded.map_err(|_| {
                io::Error::new(io::ErrorKind::InvalidData, "not base64url without padding")
            })?;
        }
        Ok(Some(chunk.into()))
    }
}

impl Body for Source {
    type Data = Bytes;
    type Error = io::Error;

    // Blocks the command's only thread, which has nothing else to do meanwhile.
    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(
            self.get_mut()
                .read()
                .map(|chunk| chunk.map(Frame::data))
                .transpose(),
        )
    }

    fn is_end_stream(&self) -> bool {
        self.from == self.to
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len())
    }
}

/// Writes the bytes of a response, in base64url if the original is text.
pub(super) struct Sink<W> {
    out: W,
    is_text: bool,
    /// Up to two bytes that are not encoded yet, because base64 encodes three at a time.
    rest: Vec<u8>,
}

impl<W: io::Write> Sink<W> {
    pub(super) fn new(out: W, is_text: bool) -> Self {
        Self {
            out,
            is_text,
            rest: Vec::new(),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.is_text {
            return self.out.write_all(bytes);
        }
        self.rest.extend_from_slice(bytes);
        let complete = self.rest.len() / 3 * 3;
        self.out
            .write_all(URL_SAFE_NO_PAD.encode(&self.rest[..complete]).as_bytes())?;
        self.rest.drain(..complete);
        Ok(())
    }

    /// Writes the remaining bytes.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out
            .write_all(URL_SAFE_NO_PAD.encode(&self.rest).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_survives_decoding_and_encoding(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            repeat in prop_oneof![Just(1usize), Just(700)],
            sizes in prop::collection::vec(1..90_000usize, 1..6),
        ) {
            let bytes = bytes.repeat(repeat);
            let text = URL_SAFE_NO_PAD.encode(&bytes);
            let mut file = tempfile::tempfile().expect("file");
            write!(file, "before{text}after").expect("write");
            let to = 6 + text.len() as u64;
            let source = Source { file: Arc::new(file), from: 6, to, is_text: true };
            prop_assert_eq!(source.size_hint().exact(), Some(bytes.len() as u64));
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            let read = runtime.block_on(source.collect()).expect("body").to_bytes();
            prop_assert_eq!(&read[..], &bytes[..]);
            let mut out = Vec::new();
            let mut sink = Sink::new(&mut out, true);
            let (mut rest, mut sizes) = (&bytes[..], sizes.iter().cycle());
            while !rest.is_empty() {
                let size = sizes.next().map_or(1, |size| *size).min(rest.len());
                let (now, later) = rest.split_at(size);
                sink.write(now).expect("write");
                rest = later;
            }
            sink.finish().expect("write");
            prop_assert_eq!(out, text.into_bytes());
        }
    }
}
