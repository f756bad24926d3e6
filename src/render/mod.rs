//! Renders secrets to files, for applications that can't use the socket.
//!
//! Each file has a task that renders and writes it, and one that notifies its readers. A rendering
//! that fails leaves the file as it is.
//!
//! Values pass through here from the secrets to the files, in memory that is zeroized except in the
//! template engine.

mod lines;
mod metrics;
mod notice;
mod source;
mod target;
mod task;
mod template_file;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{metrics::RenderMetrics, source::UsedSecret};
use crate::{
    audit::Recorder,
    clock::Clock,
    config::{self, Settings},
    secrets::Secrets,
    telemetry::Registry,
};

pub use self::metrics::describe as describe_metrics;

/// How long a command may continue when the sidecar stops.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long killing and reaping it may take after that.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// The values of how many recent writes are redacted from a command's output.
const RECENT_WRITES: usize = 4;

/// What [`Renders`] are started with.
pub struct Parts<'s> {
    pub(crate) settings: &'s Settings,
    pub(crate) secrets: &'s Arc<Secrets>,
    pub(crate) clock: Clock,
    pub(crate) registry: Arc<Registry>,
    pub(crate) audit: Recorder,
}

/// The rendered files of a process.
pub struct Renders {
    renders: Vec<Arc<Render>>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Renders {
    /// Spawns the tasks of all configured files on the current runtime.
    pub(crate) fn start(parts: &Parts<'_>) -> Self {
        let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
        let start = |settings: &config::Render| {
            let render = Arc::new(Render::new(settings.clone(), parts));
            let changes = parts.secrets.changes();
            let renderer = task::Renderer::new(
                Arc::clone(&render),
                Arc::clone(parts.secrets),
                changes,
                parts,
            );
            let (stop, written) = (stopping.clone(), CancellationToken::new());
            let last_written = written.clone().drop_guard();
            tasks.spawn(async move {
                renderer.run(stop).await;
                drop(last_written);
            });
            if let Some(notifier) = notice::Notifier::new(&render, stopping.clone(), written) {
                tasks.spawn(notifier.run());
            }
            render
        };
        let renders = parts.settings.renders.iter().map(start).collect();
        Self {
            renders,
            stopping,
            tasks,
        }
    }

    pub(crate) fn all(&self) -> &[Arc<Render>] {
        &self.renders
    }

    /// Renders every file again, and repeats notices that failed.
    pub(crate) fn request(&self) {
        for render in &self.renders {
            render.requested.notify_one();
            if render
                .lock_status()
                .last_notice
                .as_ref()
                .is_some_and(|notice| notice.failure.is_some())
            {
                render.notice_due.notify_one();
            }
        }
    }

    /// Stops writing, and waits for a limited time for commands to end.
    pub(crate) async fn close(&self) {
        self.stopping.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_GRACE + KILL_TIMEOUT, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                "a file was still being written, or its readers notified, when the sidecar stopped"
            );
        }
    }
}

impl Drop for Renders {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

/// A rendered file, as seen from outside its tasks.
pub struct Render {
    settings: config::Render,
    status: Mutex<RenderStatus>,
    /// How many attempts to render have ended.
    attempts: watch::Sender<u64>,
    /// Notified when the file has to be rendered now.
    requested: Notify,
    /// Notified when readers have to be notified of a change. Further changes during a notification
    /// coalesce into one.
    notice_due: Notify,
    /// The secrets in the file, last; before them, if there is a command, those of recent writes.
    /// They are redacted from its output, because a command that compares can print former values,
    /// which may still be valid.
    recent: Mutex<VecDeque<Vec<UsedSecret>>>,
    clock: Clock,
    metrics: RenderMetrics,
}

/// The status of a rendered file.
#[derive(Debug, Clone, Default)]
pub struct RenderStatus {
    pub(crate) content: Option<FileContent>,
    /// The last attempt's failure and its time; None once one succeeds.
    pub(crate) failure: Option<(Timestamp, RenderFailure)>,
    pub(crate) last_notice: Option<NoticeResult>,
}

/// What a file contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    /// When the file was last written or found unchanged.
    pub(crate) confirmed_at: Timestamp,
    /// When this process last wrote it; None if it never had to.
    pub(crate) written_at: Option<Timestamp>,
    /// The names of the secrets and their versions.
    pub(crate) secrets: Vec<(String, String)>,
}

/// Why a file is not written, or its readers are not notified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderFailure {
    /// A stable name, for metrics.
    pub(crate) reason: &'static str,
    /// What failed, on what, and what to do.
    pub(crate) message: String,
}

/// The result of a notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoticeResult {
    pub(crate) at: Timestamp,
    pub(crate) failure: Option<RenderFailure>,
}

impl Render {
    fn new(settings: config::Render, parts: &Parts<'_>) -> Self {
        let metrics = RenderMetrics::new(&settings, &parts.registry);
        Self {
            settings,
            status: Mutex::default(),
            attempts: watch::Sender::default(),
            requested: Notify::new(),
            notice_due: Notify::new(),
            recent: Mutex::default(),
            clock: parts.clock.clone(),
            metrics,
        }
    }

    pub(crate) fn settings(&self) -> &config::Render {
        &self.settings
    }

    pub(crate) fn status(&self) -> RenderStatus {
        self.lock_status().clone()
    }

    /// Subscribes to the number of attempts that have ended.
    pub(crate) fn attempts(&self) -> watch::Receiver<u64> {
        self.attempts.subscribe()
    }

    /// Counts a use of the values in the file, except those that are also in `rendered`, which are
    /// counted by the caller.
    fn record_use(&self, now: Timestamp, rendered: &[UsedSecret]) {
        let recent = self.recent();
        let is_counted = |used: &&UsedSecret| rendered.iter().any(|new| used.is_same(new));
        for used in recent
            .back()
            .into_iter()
            .flatten()
            .filter(|used| !is_counted(used))
        {
            used.value.record_use(now);
        }
    }

    /// Remembers the secrets in the file.
    fn remember(&self, used: Vec<UsedSecret>, was_written: bool) {
        let most = if self.settings.notice.is_some() {
            RECENT_WRITES
        } else {
            1
        };
        let mut recent = self.recent();
        if !was_written {
            recent.pop_back();
        }
        recent.push_back(used);
        while recent.len() > most {
            recent.pop_front();
        }
    }

    fn recent(&self) -> MutexGuard<'_, VecDeque<Vec<UsedSecret>>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_status(&self) -> MutexGuard<'_, RenderStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
