//! Files that are made of secrets, for applications that can't call a socket: one task for each file renders and writes it, another
//! tells who reads it. A rendering that fails leaves the file as it is.
//!
//! Values pass through here from the secrets to the files, in memory that is zeroized as far as it is ours.

mod lines;
mod meters;
mod notice;
mod source;
mod target;
mod task;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    audit::Recorder,
    clock::Clock,
    config::{self, Settings},
    secrets::Secrets,
    telemetry::Registry,
};
use meters::RenderMeters;
use source::Used;

pub use meters::describe as describe_metrics;

/// How long a command may go on once the sidecar stops.
const FAREWELL: Duration = Duration::from_secs(5);
/// What killing and reaping it may take after that.
const REAPING: Duration = Duration::from_secs(1);

/// The values of how many writes a command's output must not show.
const LATELY: usize = 4;

/// What files are rendered with.
pub struct Parts<'s> {
    /// The config.
    pub settings: &'s Settings,
    /// What they are made of.
    pub secrets: &'s Arc<Secrets>,
    /// The time.
    pub clock: Clock,
    /// The metrics.
    pub registry: Arc<Registry>,
    /// Takes note of what is written.
    pub audit: Recorder,
}

/// The files of one process that are made of secrets.
pub struct Renders {
    renders: Vec<Arc<Render>>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Renders {
    /// Starts to render the files of a config, on the current runtime.
    pub fn start(parts: &Parts<'_>) -> Self {
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

    /// All of them.
    pub fn all(&self) -> &[Arc<Render>] {
        &self.renders
    }

    /// Renders every file anew, and repeats a notice that failed.
    pub fn request(&self) {
        for render in &self.renders {
            render.requested.notify_one();
            if render
                .state()
                .notice
                .as_ref()
                .is_some_and(|notice| notice.failure.is_some())
            {
                render.due.notify_one();
            }
        }
    }

    /// Writes nothing any more, and waits a while for commands that run.
    pub async fn close(&self) {
        self.stopping.cancel();
        self.tasks.close();
        if tokio::time::timeout(FAREWELL + REAPING, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("a file was still being written when the time for it was over");
        }
    }
}

impl Drop for Renders {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

/// A file that is made of secrets, as it is seen from outside its task.
pub struct Render {
    settings: config::Render,
    state: Mutex<Standing>,
    /// Counts what came of attempts.
    attempts: watch::Sender<u64>,
    /// Somebody wants it rendered now.
    requested: Notify,
    /// It has changed, and nobody has been told yet. However often that happens while somebody is told, he is told once more.
    due: Notify,
    /// What stands in the file, at the end; before that what stood there, if there is a command. Its output must show neither: one that
    /// compares may say what was there before, which may still be valid.
    lately: Mutex<VecDeque<Vec<Used>>>,
    clock: Clock,
    meters: RenderMeters,
}

/// How a file is doing.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// What is in it.
    pub written: Option<Written>,
    /// Why the last attempt gave nothing; `None` once one succeeds.
    pub failure: Option<(Timestamp, Failure)>,
    /// The last notice.
    pub notice: Option<Told>,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// When it was last found or made so.
    pub confirmed_at: Timestamp,
    /// When this process last wrote it; `None` if it was so already.
    pub written_at: Option<Timestamp>,
    /// The secrets in it, and their versions.
    pub secrets: Vec<(String, String)>,
}

/// Why a file isn't written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A stable word.
    pub reason: &'static str,
    /// What failed, on what, what to do.
    pub message: String,
}

/// What came of a notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// When.
    pub at: Timestamp,
    /// Why it failed.
    pub failure: Option<Failure>,
}

impl Render {
    fn new(settings: config::Render, parts: &Parts<'_>) -> Self {
        let meters = RenderMeters::new(&settings, &parts.registry);
        Self {
            settings,
            state: Mutex::default(),
            attempts: watch::Sender::default(),
            requested: Notify::new(),
            due: Notify::new(),
            lately: Mutex::default(),
            clock: parts.clock.clone(),
            meters,
        }
    }

    /// Where it is and what makes it.
    pub fn settings(&self) -> &config::Render {
        &self.settings
    }

    /// How it is doing.
    pub fn standing(&self) -> Standing {
        self.state().clone()
    }

    /// Tells of every attempt that ended.
    pub fn attempts(&self) -> watch::Receiver<u64> {
        self.attempts.subscribe()
    }

    /// Notes that what stands in the file was in use until now, but for the values in `anew`, whose use counts by itself.
    fn note_use(&self, now: Timestamp, anew: &[Used]) {
        let lately = self.lately();
        let is_anew = |used: &&Used| anew.iter().any(|new| used.is_same(new));
        for used in lately
            .back()
            .into_iter()
            .flatten()
            .filter(|used| !is_anew(used))
        {
            used.value.used(now);
        }
    }

    /// Notes what stands in the file now.
    fn hold(&self, used: Vec<Used>, was_written: bool) {
        let most = if self.settings.notice.is_some() {
            LATELY
        } else {
            1
        };
        let mut lately = self.lately();
        if !was_written {
            lately.pop_back();
        }
        lately.push_back(used);
        while lately.len() > most {
            lately.pop_front();
        }
    }

    fn lately(&self) -> MutexGuard<'_, VecDeque<Vec<Used>>> {
        self.lately.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, Standing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
