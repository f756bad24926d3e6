//! Standard input, output and error as plain descriptors.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::event::{PollFd, PollFlags, poll};

/// A descriptor whose reads and writes wait, even if another process that shares it made it
/// non-blocking: pipes of Node.js, for example, are. Nothing is buffered, and no lock is held that
/// another thread could wait for.
#[derive(Debug)]
pub struct Patient(File);

impl From<File> for Patient {
    fn from(file: File) -> Self {
        Self(file)
    }
}

impl Patient {
    /// Standard input.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn stdin() -> io::Result<Self> {
        Self::duplicate(io::stdin().as_fd())
    }

    /// Standard output.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn stdout() -> io::Result<Self> {
        Self::duplicate(io::stdout().as_fd())
    }

    /// Standard error.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn stderr() -> io::Result<Self> {
        Self::duplicate(io::stderr().as_fd())
    }

    fn duplicate(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self(descriptor.try_clone_to_owned()?.into()))
    }

    /// The descriptor as a file.
    pub fn into_file(self) -> File {
        self.0
    }

    /// Waits until what is written has no reader any more: a pipe's readers closed it, or a
    /// terminal hung up. Returns at once if that can't be known.
    pub fn wait_until_unread(&self) {
        // Errors and hangups are always reported.
        while let Err(rustix::io::Errno::INTR) = self.wait(PollFlags::empty()) {}
    }

    fn wait(&self, events: PollFlags) -> rustix::io::Result<()> {
        poll(&mut [PollFd::new(&self.0, events)], None).map(drop)
    }

    fn retry(
        &self,
        events: PollFlags,
        mut attempt: impl FnMut(&File) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match attempt(&self.0) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(events)?,
                done => return done,
            }
        }
    }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.retry(PollFlags::IN, |mut file| file.read(buffer))
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.retry(PollFlags::OUT, |mut file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{io::pipe, os::fd::OwnedFd, thread};

    use rustix::io::ioctl_fionbio;

    use super::*;

    #[test]
    fn a_non_blocking_pipe_is_waited_for() {
        let (reader, writer) = pipe().expect("pipe");
        ioctl_fionbio(&reader, true).expect("non-blocking");
        ioctl_fionbio(&writer, true).expect("non-blocking");
        // More than a pipe holds, in both directions of waiting.
        let sent: Vec<u8> = (0..1_000_000_u32).map(|at| at as u8).collect();
        let expected = sent.clone();
        let writing = thread::spawn(move || {
            let mut writer = Patient::from(File::from(OwnedFd::from(writer)));
            writer.write_all(&sent)
        });
        let mut received = Vec::new();
        let mut reader = Patient::from(File::from(OwnedFd::from(reader)));
        reader.read_to_end(&mut received).expect("read");
        writing.join().expect("writer").expect("written");
        assert!(received == expected);
    }

    #[test]
    fn a_pipe_without_a_reader_is_noticed() {
        let (reader, writer) = pipe().expect("pipe");
        let writer = Patient::from(File::from(OwnedFd::from(writer)));
        let waiting = thread::spawn(move || writer.wait_until_unread());
        drop(reader);
        waiting.join().expect("noticed");
    }
}
