//! Notifies the readers of a file of a change, by a command or a signal. One notification runs at a
//! time, and changes during it cause another one.

use std::{
    io::{self, Read},
    path::Path,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, getpid, kill_process, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::{
    KILL_TIMEOUT, NoticeResult, Render, RenderFailure, STOP_GRACE,
    lines::{LineWriter, Redactions},
};
use crate::{
    clock,
    config::{Notice, Signal},
    files::{ChangeCallback, WatchGuard, open_regular, restore_limit, run_blocking, watch},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// How long output is read after a command has ended, in case a child process holds it open.
const OUTPUT_GRACE: Duration = Duration::from_millis(200);
/// The most bytes read from a PID file.
const MAX_PID_FILE: u64 = 64;

pub(super) struct Notifier {
    render: Arc<Render>,
    notice: Notice,
    stopping: CancellationToken,
    /// Cancelled when the file is no longer written.
    writes_ended: CancellationToken,
}

impl Notifier {
    pub(super) fn new(
        render: &Arc<Render>,
        stopping: CancellationToken,
        writes_ended: CancellationToken,
    ) -> Option<Self> {
        let notice = render.settings.notice.clone()?;
        Some(Self {
            render: Arc::clone(render),
            notice,
            stopping,
            writes_ended,
        })
    }

    /// Ends when the file is no longer written and readers are notified of every write.
    pub(super) async fn run(self) {
        loop {
            tokio::select! {
                // A write just before the end is still announced.
                biased;
                () = self.render.notice_due.notified() => {}
                () = self.writes_ended.cancelled() => return,
            }
            self.notify().await;
        }
    }

    /// Notifies the readers, and retries if that fails. A signal is sent in any case once the PID
    /// file changes: the process may not have started yet.
    async fn notify(&self) {
        let (mut redactions, mut failures) = (self.redactions().await, 0);
        let (pid_file_changed, pid_file_watch) = self.watch_pid_file().await;
        loop {
            let result = match &self.notice {
                Notice::Command(argv) => self.run_command(argv, &redactions).await,
                Notice::Signal { signal, pid_file } => send(*signal, pid_file).await,
            };
            let failure = result.err();
            let has_failed = failure.is_some();
            self.record(failure, failures);
            let retries = failures < self.render.settings.retries;
            let waits = retries || pid_file_watch.is_some();
            if !has_failed || !waits || self.stopping.is_cancelled() {
                return;
            }
            failures = failures.saturating_add(1);
            tokio::select! {
                () = sleep(backoff(failures)), if retries => {}
                () = pid_file_changed.notified() => {}
                // The file has changed again, so start over.
                () = self.render.notice_due.notified() => {
                    (redactions, failures) = (self.redactions().await, 0);
                }
                () = self.stopping.cancelled() => return,
            }
        }
    }

    /// Watches the PID file, if there is one.
    async fn watch_pid_file(&self) -> (Arc<Notify>, Option<WatchGuard>) {
        let changed = Arc::new(Notify::new());
        let Notice::Signal { pid_file, .. } = &self.notice else {
            return (changed, None);
        };
        let (path, notified) = (pid_file.clone(), Arc::clone(&changed));
        let on_change: ChangeCallback = Arc::new(move || notified.notify_one());
        let watch = run_blocking(move || watch(&path, None, &on_change)).await;
        (changed, Some(watch))
    }

    /// Returns the secrets of recent writes, which are redacted from a command's output. Computed
    /// on a blocking thread, because there can be many.
    async fn redactions(&self) -> Arc<Redactions> {
        let Notice::Command(_) = self.notice else {
            return Arc::new(Redactions::everything());
        };
        let recent: Vec<_> = self.render.recent().iter().flatten().cloned().collect();
        let redactions = tokio::task::spawn_blocking(move || Redactions::new(&recent)).await;
        Arc::new(redactions.unwrap_or_else(|_| Redactions::everything()))
    }

    fn record(&self, failure: Option<RenderFailure>, failures: u32) {
        let file = self.render.settings.file.display();
        self.render
            .metrics
            .notified(failure.as_ref().map_or("ok", |failure| failure.reason));
        match &failure {
            None => info!(%file, "readers notified"),
            Some(failure) => {
                let left = self.render.settings.retries.saturating_sub(failures);
                warn!(
                    %file, reason = failure.reason, retries_left = left,
                    "can't notify the readers: {}", failure.message
                );
            }
        }
        self.render.lock_status().last_notice = Some(NoticeResult {
            at: self.render.clock.now(),
            failure,
        });
    }

    fn command(&self, program: &str, arguments: &[String]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("SIDEKEY_RENDERED", &self.render.settings.file)
            // The command must not talk to the service manager for the sidecar.
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        command
    }

    async fn run_command(
        &self,
        argv: &[String],
        redactions: &Arc<Redactions>,
    ) -> Result<(), RenderFailure> {
        let Some((program, arguments)) = argv.split_first() else {
            unreachable!("the config requires a program")
        };
        let child = self
            .command(program, arguments)
            .spawn()
            .map_err(|error| failed("failed", format!("can't start {program}: {error}")))?;
        if let Some(pid) = child.id() {
            restore_limit(pid);
        }
        let mut running = RunningCommand::new(child);
        let (ended, readers) = (CancellationToken::new(), TaskTracker::new());
        // The output is read all the time, because a full pipe would block the command.
        readers.spawn(log(
            running.child.stdout.take(),
            Arc::clone(&self.render),
            Arc::clone(redactions),
            ended.clone(),
        ));
        readers.spawn(log(
            running.child.stderr.take(),
            Arc::clone(&self.render),
            Arc::clone(redactions),
            ended.clone(),
        ));
        readers.close();
        let limit = self.render.settings.timeout;
        let stopped = async {
            self.stopping.cancelled().await;
            sleep(STOP_GRACE).await;
        };
        let result = tokio::select! {
            status = running.child.wait() => {
                running.has_ended = true;
                check(program, status)
            }
            () = sleep(limit) => Err(failed(
                "timeout",
                format!("{program} took longer than {limit:?} (`timeout`) and was killed"),
            )),
            () = stopped => Err(failed(
                "stopped",
                format!("{program} was killed because the sidecar stops"),
            )),
        };
        running.kill().await;
        // A child process can hold the output open forever.
        let _ = timeout(OUTPUT_GRACE, readers.wait()).await;
        ended.cancel();
        readers.wait().await;
        result
    }
}

/// A command in a process group of its own. The group is killed if this is dropped before the
/// command has ended.
struct RunningCommand {
    child: Child,
    group: Option<Pid>,
    has_ended: bool,
}

impl RunningCommand {
    fn new(child: Child) -> Self {
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Self {
            child,
            group,
            has_ended: false,
        }
    }

    /// Kills the group and waits for the command, unless it has ended.
    async fn kill(&mut self) {
        if self.has_ended {
            return;
        }
        self.kill_group();
        // Only a process in uninterruptible sleep survives that.
        let _ = timeout(KILL_TIMEOUT, self.child.wait()).await;
        self.has_ended = true;
    }

    /// The group's id can't be reused before the command has been waited for.
    fn kill_group(&self) {
        if let Some(group) = self.group {
            // Fails if the group has just ended.
            let _ = kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

impl Drop for RunningCommand {
    fn drop(&mut self) {
        if !self.has_ended {
            self.kill_group();
        }
    }
}

fn failed(reason: &'static str, message: String) -> RenderFailure {
    RenderFailure { reason, message }
}

fn check(program: &str, status: io::Result<ExitStatus>) -> Result<(), RenderFailure> {
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed("failed", format!("{program}: {status}"))),
        Err(error) => Err(failed(
            "failed",
            format!("can't wait for {program}: {error}"),
        )),
    }
}

/// Logs the output of a command until it is closed or `ended` is cancelled.
async fn log(
    stream: Option<impl AsyncRead + Unpin>,
    render: Arc<Render>,
    redactions: Arc<Redactions>,
    ended: CancellationToken,
) {
    let Some(mut stream) = stream else { return };
    let file = render.settings.file.display();
    let show = |line: &str| info!(%file, "command output: {line}");
    let (mut lines, mut buffer) = (LineWriter::new(&redactions), Zeroizing::new([0; 4096]));
    while let Some(Ok(length @ 1..)) = ended.run_until_cancelled(stream.read(&mut *buffer)).await {
        lines.write(&buffer[..length], show);
    }
    lines.finish(show);
}

async fn send(signal: Signal, pid_file: &Path) -> Result<(), RenderFailure> {
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
            format!("sending the signal was aborted: {error}"),
        ))
    })
}

fn read_pid(path: &Path) -> Result<Pid, String> {
    let mut text = String::new();
    let unreadable = |error| format!("can't read the file: {error}");
    let file = open_regular(path).map_err(unreadable)?;
    file.take(MAX_PID_FILE)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    // A number that is not positive would denote a process group.
    let number = text.trim().parse::<i32>().ok().filter(|number| *number > 0);
    let pid = number
        .and_then(Pid::from_raw)
        .ok_or("the file does not contain a process id")?;
    if pid == getpid() {
        Err("the file contains the sidecar's own process id".into())
    } else {
        Ok(pid)
    }
}

fn backoff(failures: u32) -> Duration {
    clock::backoff(FIRST_BACKOFF, failures, MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_contains_one_positive_number_that_is_not_our_own() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let read = |text: &str| {
            std::fs::write(file.path(), text).expect("write");
            read_pid(file.path()).map(Pid::as_raw_pid)
        };
        assert_eq!(read(" 4711\n"), Ok(4711));
        for text in ["", "0", "-1", "-4711", "1 2", "nginx", "99999999999"] {
            assert_eq!(
                read(text),
                Err("the file does not contain a process id".into()),
                "{text}"
            );
        }
        assert_eq!(
            read(&std::process::id().to_string()),
            Err("the file contains the sidecar's own process id".into())
        );
        assert!(
            read_pid(Path::new("/nowhere/pid"))
                .expect_err("missing")
                .contains("No such file")
        );
    }

    /// Opening a pipe as a file would block forever.
    #[test]
    fn a_pipe_is_not_a_pid_file() {
        let folder = tempfile::tempdir().expect("folder");
        let pipe = folder.path().join("pid");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).expect("pipe");
        for wrong in [&pipe, folder.path()] {
            let error = read_pid(wrong).expect_err("refused");
            assert!(error.contains("not a regular file"), "{error}");
        }
    }

    #[test]
    fn the_backoff_grows_up_to_its_maximum() {
        assert_eq!(
            [1, 2, 3].map(backoff),
            [250, 500, 1000].map(Duration::from_millis)
        );
        assert_eq!(backoff(u32::MAX), MAX_BACKOFF);
    }
}
