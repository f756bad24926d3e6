//! Tells who reads a file that it has changed: a command, or a signal. One at a time; what changes meanwhile is told once more.

use std::{
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::{
    fs::OFlags,
    process::{Pid, getpid, kill_process, kill_process_group},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::{
    FAREWELL, Failure, REAPING, Render, Told,
    lines::{Guarded, Lines},
};
use crate::{
    clock,
    config::{Notice, Signal},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// How long the output of a command that has ended is read, if somebody whom it left behind holds it open.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// More than any process id takes.
const PID_FILE: u64 = 64;

pub(super) struct Notifier {
    render: Arc<Render>,
    notice: Notice,
    stopping: CancellationToken,
    /// Cancelled once nothing is written any more.
    written: CancellationToken,
}

impl Notifier {
    pub(super) fn new(
        render: &Arc<Render>,
        stopping: CancellationToken,
        written: CancellationToken,
    ) -> Option<Self> {
        let notice = render.settings.notice.clone()?;
        Some(Self {
            render: Arc::clone(render),
            notice,
            stopping,
            written,
        })
    }

    /// Ends once nothing is written any more, and nothing that was written is left untold.
    pub(super) async fn run(self) {
        loop {
            tokio::select! {
                // What was written just before the end is still told.
                biased;
                () = self.render.due.notified() => {}
                () = self.written.cancelled() => return,
            }
            self.tell().await;
        }
    }

    /// Tells, and tries again if that fails.
    async fn tell(&self) {
        let (mut guarded, mut failures) = (self.guarded().await, 0);
        loop {
            let result = match &self.notice {
                Notice::Command(argv) => self.run_command(argv, &guarded).await,
                Notice::Signal { signal, pid_file } => send(*signal, pid_file).await,
            };
            let failure = result.err();
            let has_failed = failure.is_some();
            self.note(failure, failures);
            if !has_failed
                || failures >= self.render.settings.retries
                || self.stopping.is_cancelled()
            {
                return;
            }
            failures += 1;
            tokio::select! {
                () = sleep(backoff(failures)) => {}
                // There is something new to tell, which has tries of its own.
                () = self.render.due.notified() => {
                    (guarded, failures) = (self.guarded().await, 0);
                }
                () = self.stopping.cancelled() => return,
            }
        }
    }

    /// The secrets that stand in the file now, or stood there lately. On a thread that may take its time, for there may be many.
    async fn guarded(&self) -> Arc<Guarded> {
        let Notice::Command(_) = self.notice else {
            return Arc::new(Guarded::everything());
        };
        let lately: Vec<_> = self.render.lately().iter().flatten().cloned().collect();
        let guarded = tokio::task::spawn_blocking(move || Guarded::new(&lately)).await;
        Arc::new(guarded.unwrap_or_else(|_| Guarded::everything()))
    }

    fn note(&self, failure: Option<Failure>, failures: u32) {
        let file = self.render.settings.file.display();
        self.render
            .meters
            .told(failure.as_ref().map_or("ok", |failure| failure.reason));
        match &failure {
            None => info!(%file, "the change was told"),
            Some(failure) => {
                let left = self.render.settings.retries.saturating_sub(failures);
                warn!(%file, reason = failure.reason, retries_left = left, "the change was not told: {}", failure.message);
            }
        }
        self.render.state().notice = Some(Told {
            at: self.render.clock.now(),
            failure,
        });
    }

    async fn run_command(&self, argv: &[String], guarded: &Arc<Guarded>) -> Result<(), Failure> {
        let Some((program, arguments)) = argv.split_first() else {
            unreachable!("the config has looked for a program")
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("SIDEKEY_RENDERED", &self.render.settings.file)
            // It speaks for us to the service manager.
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let child = command
            .spawn()
            .map_err(|error| failed("failed", format!("can't start {program}: {error}")))?;
        let mut running = Running::new(child);
        let (over, readers) = (CancellationToken::new(), TaskTracker::new());
        // Its output is read all the while, for a pipe that is full would hold it up.
        readers.spawn(log(
            running.child.stdout.take(),
            Arc::clone(&self.render),
            Arc::clone(guarded),
            over.clone(),
        ));
        readers.spawn(log(
            running.child.stderr.take(),
            Arc::clone(&self.render),
            Arc::clone(guarded),
            over.clone(),
        ));
        readers.close();
        let limit = self.render.settings.timeout;
        let stopped = async {
            self.stopping.cancelled().await;
            sleep(FAREWELL).await;
        };
        let result = tokio::select! {
            ended = running.child.wait() => {
                running.is_over = true;
                check(program, ended)
            }
            () = sleep(limit) => Err(failed("timeout", format!("{program} took longer than {limit:?} (`timeout`) and was killed"))),
            () = stopped => Err(failed("stopped", format!("{program} was killed because the sidecar stops"))),
        };
        running.kill().await;
        // Somebody whom it left behind may hold its output open for ever.
        let _ = timeout(LAST_WORDS, readers.wait()).await;
        over.cancel();
        readers.wait().await;
        result
    }
}

/// A command in a process group of its own, which is killed with it if this is dropped before the command has ended.
struct Running {
    child: Child,
    group: Option<Pid>,
    is_over: bool,
}

impl Running {
    fn new(child: Child) -> Self {
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Self {
            child,
            group,
            is_over: false,
        }
    }

    /// Kills it with its children, and waits for its end; nothing if it has ended.
    async fn kill(&mut self) {
        if self.is_over {
            return;
        }
        self.kill_group();
        // Nobody survives that, but for one that the kernel can't wake.
        let _ = timeout(REAPING, self.child.wait()).await;
        self.is_over = true;
    }

    /// As long as the command has not been waited for, nobody else can have its group's number.
    fn kill_group(&self) {
        if let Some(group) = self.group {
            // It may have ended in this very moment.
            let _ = kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            self.kill_group();
        }
    }
}

fn failed(reason: &'static str, message: String) -> Failure {
    Failure { reason, message }
}

fn check(program: &str, ended: io::Result<ExitStatus>) -> Result<(), Failure> {
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed("failed", format!("{program}: {status}"))),
        Err(error) => Err(failed(
            "failed",
            format!("can't wait for {program}: {error}"),
        )),
    }
}

/// Writes what a command says to the log, until it says no more or `over` is cancelled.
async fn log(
    stream: Option<impl AsyncRead + Unpin>,
    render: Arc<Render>,
    guarded: Arc<Guarded>,
    over: CancellationToken,
) {
    let Some(mut stream) = stream else { return };
    let file = render.settings.file.display();
    let show = |line: &str| info!(%file, "the command says: {line}");
    let (mut lines, mut buffer) = (Lines::new(&guarded), Zeroizing::new([0; 4096]));
    while let Some(Ok(length @ 1..)) = over.run_until_cancelled(stream.read(&mut *buffer)).await {
        lines.take(&buffer[..length], show);
    }
    lines.finish(show);
}

async fn send(signal: Signal, pid_file: &Path) -> Result<(), Failure> {
    let path = pid_file.to_owned();
    let sent = tokio::task::spawn_blocking(move || {
        let pid = read_pid(&path)
            .map_err(|why| failed("failed", format!("{} (`pid_file`): {why}", path.display())))?;
        let failed = |error| {
            failed(
                "failed",
                format!(
                    "can't send SIG{} to the process {pid} of {}: {error}",
                    signal.name,
                    path.display()
                ),
            )
        };
        kill_process(pid, signal.number).map_err(failed)
    });
    sent.await.unwrap_or_else(|error| {
        Err(failed(
            "failed",
            format!("sending the signal was given up: {error}"),
        ))
    })
}

fn read_pid(path: &Path) -> Result<Pid, String> {
    let mut text = String::new();
    let unreadable = |error| format!("can't read it: {error}");
    // A pipe would have nobody at its other end.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err("it is not a file".into());
    }
    file.take(PID_FILE)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    // A number that isn't positive means a whole group of processes.
    let number = text.trim().parse::<i32>().ok().filter(|number| *number > 0);
    let pid = number
        .and_then(Pid::from_raw)
        .ok_or("it does not hold a process's id")?;
    if pid == getpid() {
        Err("it names this sidecar itself".into())
    } else {
        Ok(pid)
    }
}

fn backoff(failures: u32) -> Duration {
    clock::backoff(FIRST_BACKOFF, failures, LONGEST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_id_is_one_positive_number_and_not_our_own() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let read = |text: &str| {
            std::fs::write(file.path(), text).expect("write");
            read_pid(file.path()).map(Pid::as_raw_pid)
        };
        assert_eq!(read(" 4711\n"), Ok(4711));
        for text in ["", "0", "-1", "-4711", "1 2", "nginx", "99999999999"] {
            assert_eq!(
                read(text),
                Err("it does not hold a process's id".into()),
                "{text}"
            );
        }
        assert_eq!(
            read(&std::process::id().to_string()),
            Err("it names this sidecar itself".into())
        );
        assert!(
            read_pid(Path::new("/nowhere/pid"))
                .expect_err("missing")
                .contains("No such file")
        );
    }

    /// Opening one as a file would wait for ever.
    #[test]
    fn a_pipe_holds_no_process_id() {
        let folder = tempfile::tempdir().expect("folder");
        let pipe = folder.path().join("pid");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).expect("pipe");
        assert_eq!(read_pid(&pipe), Err("it is not a file".into()));
        assert_eq!(read_pid(folder.path()), Err("it is not a file".into()));
    }

    #[test]
    fn waits_grow_up_to_a_bound() {
        assert_eq!(
            [1, 2, 3].map(backoff),
            [250, 500, 1000].map(Duration::from_millis)
        );
        assert_eq!(backoff(u32::MAX), LONGEST_BACKOFF);
    }
}
