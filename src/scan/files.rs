//! Reads files in parallel, and a large file in segments, through windows of a fixed size.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    num::NonZeroUsize,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use rustix::fs::{Advice, OFlags, fadvise};

use super::{Counts, CountsByKey, LOOK_AHEAD, LOOK_BEHIND, Search, Visit, opaque::opaque, walk};
use crate::{crypto::OVERHEAD, files::Patient};

/// The largest part of a file that one worker reads, in bytes.
const SEGMENT: u64 = 64 << 20;
/// The size of a window in bytes: small enough to stay in the cache between reading and searching.
const WINDOW: usize = 256 << 10;
/// How many files can wait for a worker.
const QUEUE: usize = 1024;

/// Where to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// A file, or a folder with everything beneath it.
    Path(PathBuf),
    /// Standard input.
    Stdin,
}

/// How to search.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Whether symbolic links beneath a folder are followed.
    pub follow_links: bool,
    /// How many threads read and search.
    pub threads: NonZeroUsize,
    /// Whether the report lists every file with ciphertexts, and all that was skipped.
    pub lists_files: bool,
}

/// The progress of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// This many more bytes are to be searched.
    Found(u64),
    /// This many more bytes were searched.
    Searched(u64),
}

/// The result of a scan.
#[derive(Debug, Default)]
pub struct Report {
    /// The number of ciphertexts.
    pub counts_by_key: CountsByKey,
    /// The number of files with ciphertexts, by keyring tag and version.
    pub files_by_key: std::collections::BTreeMap<([u8; 4], u32), u64>,
    /// The files with ciphertexts, by path, if the options request them.
    pub files: Vec<FileReport>,
    /// How many files were read completely.
    pub searched_files: u64,
    /// How many bytes were searched.
    pub searched_bytes: u64,
    /// How many files are compressed, or encrypted by another program.
    pub opaque: u64,
    /// How many links, pipes, sockets and devices beneath folders were skipped.
    pub skipped: u64,
    /// Opaque files and skipped entries, with what they are, if the options request them.
    pub unseen: Vec<(PathBuf, &'static str)>,
    /// Roots without anything to search: folders without regular files, and empty pipes.
    pub empty: Vec<PathBuf>,
    /// What could not be read, and why.
    pub failures: Vec<(PathBuf, String)>,
}

/// The ciphertexts of one file.
#[derive(Debug)]
pub struct FileReport {
    /// The file; `-` is standard input.
    pub path: PathBuf,
    /// The number of ciphertexts in it.
    pub counts_by_key: CountsByKey,
}

/// Searches everything beneath `roots`. The report lists what could not be read.
pub fn scan(
    roots: &[Root],
    search: &Search,
    options: Options,
    progress: &(impl Fn(Progress) + Sync),
) -> Report {
    let report = Mutex::new(Report::default());
    let scan = Scan {
        search,
        options,
        progress,
        report: &report,
    };
    let (sender, receiver) = sync_channel(QUEUE);
    let receiver = Mutex::new(receiver);
    thread::scope(|scope| {
        for _ in 0..options.threads.get() {
            scope.spawn(|| scan.work(&receiver));
        }
        for root in roots {
            match root {
                Root::Path(path) => scan.enqueue_root(path, &sender),
                Root::Stdin => scan.read_stream(Path::new("-"), Patient::stdin()),
            }
        }
        drop(sender);
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.files.sort_by(|a, b| a.path.cmp(&b.path));
    report.unseen.sort();
    report.empty.sort();
    report.failures.sort();
    report
}

/// A part of a file, from one offset to another or to the end.
struct Part {
    file: Arc<OpenFile>,
    from: u64,
    to: Option<u64>,
}

enum Job {
    Small(PathBuf),
    Part(Part),
}

/// A file that one or more workers are reading.
struct OpenFile {
    path: PathBuf,
    file: File,
    /// The length when it was opened.
    len: u64,
    open_parts: AtomicUsize,
    outcome: Mutex<Outcome>,
}

#[derive(Default)]
struct Outcome {
    counts_by_key: CountsByKey,
    bytes: u64,
    opaque: Option<&'static str>,
    failure: Option<String>,
}

struct Scan<'s, P> {
    search: &'s Search,
    options: Options,
    progress: &'s P,
    report: &'s Mutex<Report>,
}

impl<P: Fn(Progress) + Sync> Scan<'_, P> {
    fn enqueue_root(&self, root: &Path, queue: &SyncSender<Job>) {
        let mut is_empty = true;
        for visit in walk(root, self.options.follow_links) {
            // A failure is reported separately.
            is_empty &= matches!(visit, Visit::Skipped(..));
            self.enqueue(visit, queue);
        }
        if is_empty {
            self.report().empty.push(root.into());
        }
    }

    fn enqueue(&self, visit: Visit, queue: &SyncSender<Job>) {
        // Workers stop only after the sender is dropped, so every send succeeds.
        let send = |job| drop(queue.send(job));
        match visit {
            Visit::File(path, len) => {
                (self.progress)(Progress::Found(len));
                if len <= SEGMENT {
                    return send(Job::Small(path));
                }
                match open(&path, len.div_ceil(SEGMENT)) {
                    Ok(file) => {
                        let file = Arc::new(file);
                        for from in (0..len).step_by(SEGMENT as usize) {
                            // The last part ends where the file ends by then.
                            let to = Some(from + SEGMENT).filter(|to| *to < len);
                            send(Job::Part(Part {
                                file: Arc::clone(&file),
                                from,
                                to,
                            }));
                        }
                    }
                    Err(error) => self.failed(path, error.to_string()),
                }
            }
            Visit::Pipe(path) => self.read_stream(&path, File::open(&path)),
            Visit::Skipped(path, what) => {
                let mut report = self.report();
                report.skipped += 1;
                if self.options.lists_files {
                    report.unseen.push((path, what));
                }
            }
            Visit::Failed(path, reason) => self.failed(path, reason),
        }
    }

    fn work(&self, queue: &Mutex<Receiver<Job>>) {
        let mut buffer = vec![0; WINDOW];
        loop {
            let job = locked(queue).recv();
            match job {
                Ok(Job::Small(path)) => match open(&path, 1) {
                    Ok(file) => self.read_part(
                        &Part {
                            file: Arc::new(file),
                            from: 0,
                            to: None,
                        },
                        &mut buffer,
                    ),
                    Err(error) => self.failed(path, error.to_string()),
                },
                Ok(Job::Part(part)) => self.read_part(&part, &mut buffer),
                Err(_) => return,
            }
        }
    }

    fn read_part(&self, part: &Part, buffer: &mut [u8]) {
        let file = &*part.file;
        let mut outcome = Outcome::default();
        let end = self.read(part.from, part.to, buffer, &mut outcome, |buffer, at| {
            file.file.read_at(buffer, at)
        });
        match end {
            Ok(end) => {
                outcome.bytes = part
                    .to
                    .map_or(end, |to| end.min(to))
                    .saturating_sub(part.from);
                if end < part.to.unwrap_or(file.len) {
                    outcome.failure = Some("became shorter while it was read".into());
                }
            }
            Err(error) => outcome.failure = Some(error.to_string()),
        }
        let mut whole = locked(&file.outcome);
        whole.counts_by_key.add(&outcome.counts_by_key);
        whole.bytes += outcome.bytes;
        whole.opaque = whole.opaque.or(outcome.opaque);
        whole.failure = whole.failure.take().or(outcome.failure);
        if file.open_parts.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done(&file.path, std::mem::take(&mut whole));
        }
    }

    /// Reads a stream, which can be read only once.
    fn read_stream(&self, path: &Path, stream: io::Result<impl Read>) {
        let mut outcome = Outcome::default();
        let end = stream.and_then(|mut stream| {
            self.read(0, None, &mut vec![0; WINDOW], &mut outcome, |buffer, _| {
                stream.read(buffer)
            })
        });
        match end {
            // For example, the output of a dump that failed.
            Ok(0) => self.report().empty.push(path.into()),
            Ok(end) => outcome.bytes = end,
            Err(error) => outcome.failure = Some(error.to_string()),
        }
        self.done(path, outcome);
    }

    /// Searches for ciphertexts that start in `from..to`, and reads beyond `to` as far as
    /// necessary. Returns the offset at which reading ended.
    fn read(
        &self,
        from: u64,
        to: Option<u64>,
        buffer: &mut [u8],
        outcome: &mut Outcome,
        mut read_at: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
    ) -> io::Result<u64> {
        let mut base = from.saturating_sub(LOOK_BEHIND as u64);
        // Both relative to `base`.
        let (mut decided, mut filled) = ((from - base) as usize, 0);
        let mut is_first = from == 0;
        let limit = to.map(|to| to + LOOK_AHEAD as u64);
        loop {
            let room = buffer.len() - filled;
            let wanted = limit.map_or(room, |limit| {
                (limit.saturating_sub(base + filled as u64) as usize).min(room)
            });
            let read = match read_at(&mut buffer[filled..filled + wanted], base + filled as u64) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            };
            filled += read;
            (self.progress)(Progress::Searched(read as u64));
            let is_last = read == 0;
            // The first window must be long enough to recognize the file's format.
            if is_first && (filled >= OVERHEAD || is_last) {
                is_first = false;
                let first = &buffer[..filled];
                outcome.opaque = opaque(first);
                if let Some(finding) = self.search.unknown_at_start(first) {
                    outcome.counts_by_key.count(finding);
                }
            }
            let window = &buffer[..filled];
            // Bytes before the part alone decide nothing.
            if filled >= decided {
                decided = self.search.look(window, decided, is_last, |at, finding| {
                    if to.is_none_or(|to| base + (at as u64) < to) {
                        outcome.counts_by_key.count(finding);
                    }
                });
            }
            let is_past = to.is_some_and(|to| base + decided as u64 >= to);
            if is_last || is_past {
                return Ok(base + filled as u64);
            }
            let keep = decided.saturating_sub(LOOK_BEHIND);
            buffer.copy_within(keep..filled, 0);
            base += keep as u64;
            filled -= keep;
            decided -= keep;
        }
    }

    fn done(&self, path: &Path, outcome: Outcome) {
        let mut report = self.report();
        report.searched_bytes += outcome.bytes;
        report.counts_by_key.add(&outcome.counts_by_key);
        for key in outcome.counts_by_key.0.keys() {
            *report.files_by_key.entry(*key).or_default() += 1;
        }
        if let Some(kind) = outcome.opaque {
            report.opaque += 1;
            if self.options.lists_files {
                report.unseen.push((path.into(), kind));
            }
        }
        match outcome.failure {
            Some(reason) => report.failures.push((path.into(), reason)),
            None => report.searched_files += 1,
        }
        if self.options.lists_files && outcome.counts_by_key != CountsByKey::default() {
            report.files.push(FileReport {
                path: path.into(),
                counts_by_key: outcome.counts_by_key,
            });
        }
    }

    fn failed(&self, path: PathBuf, reason: String) {
        self.report().failures.push((path, reason));
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        locked(self.report)
    }
}

/// Ignores poisoning: a panic ends the whole scan when its scope ends.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open(path: &Path, parts: u64) -> io::Result<OpenFile> {
    // The file may have been replaced by a pipe meanwhile, and opening that would block.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("no longer a regular file"));
    }
    // Only advice: some file systems ignore it.
    let _ = fadvise(&file, 0, None, Advice::Sequential);
    let open_parts = AtomicUsize::new(parts as usize);
    Ok(OpenFile {
        path: path.into(),
        file,
        len: metadata.len(),
        open_parts,
        outcome: Mutex::default(),
    })
}

impl Report {
    /// Returns the counts of one keyring and version.
    pub fn counts(&self, tag: [u8; 4], version: u32) -> Counts {
        self.counts_by_key
            .0
            .get(&(tag, version))
            .copied()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
