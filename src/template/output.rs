//! The output of a template.

use std::io;

use zeroize::Zeroizing;

/// A buffer for a template's output. It leaves no copy behind when it grows.
pub(super) struct Output {
    bytes: Zeroizing<Vec<u8>>,
    limit: usize,
}

impl Output {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            bytes: Zeroizing::new(Vec::with_capacity(4096.min(limit))),
            limit,
        }
    }

    pub(super) fn into_bytes(self) -> Zeroizing<Vec<u8>> {
        self.bytes
    }
}

impl io::Write for Output {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        let length = self.bytes.len() + chunk.len();
        if length > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if length > self.bytes.capacity() {
            let mut larger =
                Zeroizing::new(Vec::with_capacity(length.max(2 * self.bytes.capacity())));
            larger.extend_from_slice(&self.bytes);
            self.bytes = larger;
        }
        self.bytes.extend_from_slice(chunk);
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn output_grows_to_its_limit_and_no_further() {
        let mut output = Output::new(10_000);
        for _ in 0..1000 {
            output.write_all(b"0123456789").expect("room");
        }
        assert_eq!(
            output.write_all(b"x").expect_err("full").kind(),
            io::ErrorKind::FileTooLarge
        );
        assert_eq!(*output.into_bytes(), b"0123456789".repeat(1000));
    }
}
