use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// A destination that announces each write, then does as it is told.
struct Told {
    attempts: Sender<Vec<u8>>,
    answers: Receiver<io::Result<usize>>,
}

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The test may have ended.
        let _ = self.attempts.send(bytes.to_vec());
        self.answers.recv().unwrap_or(Ok(bytes.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Reader {
    attempts: Receiver<Vec<u8>>,
    answers: Sender<io::Result<usize>>,
}

impl Reader {
    fn attempt(&self) -> String {
        let bytes = self.attempts.recv_timeout(PATIENCE).expect("a write");
        String::from_utf8(bytes).expect("text")
    }

    fn accept(&self) -> String {
        let text = self.attempt();
        self.answers.send(Ok(text.len())).expect("writer");
        text
    }

    fn fail_after(&self, accepted: usize) {
        self.attempt();
        if accepted > 0 {
            self.answers.send(Ok(accepted)).expect("writer");
            self.attempt();
        }
        let full = io::Error::from(io::ErrorKind::StorageFull);
        self.answers.send(Err(full)).expect("writer");
    }
}

fn started() -> (LossyWriter, Reader) {
    let ((attempts, attempted), (answers, answered)) = (channel(), channel());
    let out = Told {
        attempts,
        answers: answered,
    };
    let report = |writer: &LossyWriter, lost| writer.write(format!("lost {lost}\n").as_bytes());
    let writer = LossyWriter::start(out, report).expect("thread");
    let reader = Reader {
        attempts: attempted,
        answers,
    };
    (writer, reader)
}

#[test]
fn a_stalled_reader_costs_lines_but_nobody_waits() {
    let (writer, reader) = started();
    writer.write(b"first\n");
    assert_eq!(reader.attempt(), "first\n");
    // The thread is in that write from here on.
    let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
    for _ in 0..10_000 {
        writer.write(&line);
    }
    assert_eq!(writer.lost(), 10_000 - 256);
    writer.flush(Duration::ZERO);
    reader.answers.send(Ok("first\n".len())).expect("writer");
    let kept = reader.accept();
    assert_eq!(kept.len(), CAPACITY);
    assert!(kept.ends_with("x\n"), "lines are kept or lost as a whole");
    assert_eq!(reader.accept(), format!("lost {}\n", 10_000 - 256));
    writer.flush(PATIENCE);
    writer.write(b"next\n");
    assert_eq!(reader.accept(), "next\n", "reported once");
}

#[test]
fn a_failing_destination_loses_lines_and_is_tried_again_for_the_next_one() {
    let (writer, reader) = started();
    writer.write(b"whole\ncut off\n");
    reader.fail_after("whole\ncut".len());
    writer.flush(PATIENCE);
    assert_eq!(writer.lost(), 1);
    writer.write(b"none of this\n");
    reader.fail_after(0);
    writer.flush(PATIENCE);
    assert_eq!(writer.lost(), 2);
    writer.write(b"works again\n");
    assert_eq!(reader.accept(), "\n", "ends the line that was cut off");
    assert_eq!(reader.accept(), "works again\n");
    assert_eq!(reader.accept(), "lost 2\n");
}

#[test]
fn everything_is_written_before_a_process_ends() {
    let (writer, reader) = started();
    for number in 0..3 {
        writer.write(format!("{number}\n").as_bytes());
    }
    let reading = thread::spawn(move || {
        let mut text = String::new();
        while !text.ends_with("2\n") {
            text += &reader.accept();
        }
        text
    });
    writer.flush(PATIENCE);
    assert_eq!(reading.join().expect("reader"), "0\n1\n2\n");
}
