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

use arc_swap::ArcSwap;
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

/// What all files of a process share.
struct Shared {
    secrets: Arc<Secrets>,
    clock: Clock,
    registry: Arc<Registry>,
    audit: Recorder,
    max_backoff: Duration,
}

/// The rendered files of a process.
pub struct Renders {
    shared: Shared,
    renders: ArcSwap<Vec<Arc<Render>>>,
    /// Those that another config removed, while their tasks end.
    ending: Mutex<Vec<Arc<Render>>>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Renders {
    /// Spawns the tasks of all configured files on the current runtime.
    pub(crate) fn start(parts: &Parts<'_>) -> Self {
        let renders = Self {
            shared: Shared {
                secrets: Arc::clone(parts.secrets),
                clock: parts.clock.clone(),
                registry: Arc::clone(&parts.registry),
                audit: parts.audit.clone(),
                max_backoff: parts.settings.refresh.max_backoff,
            },
            renders: ArcSwap::default(),
            ending: Mutex::default(),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        renders.install(&parts.settings.renders);
        renders
    }

    /// Renders the files of another config. What is the same in both goes on. A file that the other
    /// one lacks stays as it is.
    pub(crate) fn install(&self, settings: &[config::Render]) {
        let former = self.all();
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        ending.retain(|render| !render.tasks.is_empty());
        let next = settings.iter().map(|settings| {
            let same = former.iter().find(|render| render.settings == *settings);
            same.cloned().unwrap_or_else(|| {
                let of_file = former
                    .iter()
                    .chain(ending.iter())
                    .find(|render| render.settings.file == settings.file);
                self.spawn(settings, of_file.cloned())
            })
        });
        let next: Vec<_> = next.collect();
        for render in former.iter() {
            if next.iter().any(|kept| Arc::ptr_eq(kept, render)) {
                continue;
            }
            render.stopping.cancel();
            render.tasks.close();
            let file = &render.settings.file;
            if !next.iter().any(|other| other.settings.file == *file) {
                tracing::info!(file = %file.display(), "the file is no longer rendered; it stays");
                let removed = Arc::clone(render);
                ending.push(Arc::clone(render));
                self.tasks.spawn(async move {
                    removed.tasks.wait().await;
                    removed.metrics.clear();
                });
            }
        }
        self.renders.store(Arc::new(next));
    }

    /// Spawns the tasks of a file. They begin once those of `former`, which is for the same file,
    /// have ended.
    fn spawn(&self, settings: &config::Render, former: Option<Arc<Render>>) -> Arc<Render> {
        let stopping = self.stopping.child_token();
        let render = Arc::new(Render::new(
            settings.clone(),
            &self.shared,
            stopping.clone(),
        ));
        let changes = self.shared.secrets.changes();
        let renderer = task::Renderer::new(Arc::clone(&render), changes, &self.shared);
        let written = CancellationToken::new();
        let last_written = written.clone().drop_guard();
        let (own, stop) = (Arc::clone(&render), stopping.clone());
        let run = async move {
            if let Some(former) = former {
                former.tasks.wait().await;
                own.inherit(&former);
            }
            renderer.run(stop).await;
            drop(last_written);
        };
        self.tasks.spawn(render.tasks.track_future(run));
        if let Some(notifier) = notice::Notifier::new(&render, stopping, written) {
            self.tasks.spawn(render.tasks.track_future(notifier.run()));
        }
        render
    }

    pub(crate) fn all(&self) -> Arc<Vec<Arc<Render>>> {
        self.renders.load_full()
    }

    /// Renders every file again, and repeats notices that failed.
    pub(crate) fn request(&self) {
        for render in self.all().iter() {
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
    /// Ends its tasks when it is cancelled.
    stopping: CancellationToken,
    tasks: TaskTracker,
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
    fn new(settings: config::Render, shared: &Shared, stopping: CancellationToken) -> Self {
        let metrics = RenderMetrics::new(&settings, &shared.registry);
        Self {
            settings,
            stopping,
            tasks: TaskTracker::new(),
            status: Mutex::default(),
            attempts: watch::Sender::default(),
            requested: Notify::new(),
            notice_due: Notify::new(),
            recent: Mutex::default(),
            clock: shared.clock.clone(),
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

    /// Takes over what `former` wrote to the same file.
    fn inherit(&self, former: &Self) {
        *self.recent() = std::mem::take(&mut *former.recent());
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
