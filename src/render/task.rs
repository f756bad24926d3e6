//! The one task that keeps a file as its secrets say.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::json;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Failure, Parts, Render, Written,
    source::{Made, Maker},
    target::Target,
};
use crate::{
    audit::Recorder,
    clock::{backoff, spread},
    secrets::{Change, Secrets},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// How many times the quiet time a change waits at most, if the secrets are never quiet.
const PATIENCE: u32 = 4;

pub(super) struct Renderer {
    render: Arc<Render>,
    maker: Maker,
    target: Target,
    changes: broadcast::Receiver<Change>,
    audit: Recorder,
    max_backoff: Duration,
    failures: u32,
    /// When to try again, whatever happens.
    due: Option<Instant>,
}

impl Renderer {
    pub(super) fn new(
        render: Arc<Render>,
        secrets: Arc<Secrets>,
        changes: broadcast::Receiver<Change>,
        parts: &Parts<'_>,
    ) -> Self {
        Self {
            render,
            maker: Maker::new(secrets),
            target: Target::default(),
            changes,
            audit: parts.audit.clone(),
            max_backoff: parts.settings.refresh.max_backoff,
            failures: 0,
            due: None,
        }
    }

    /// Ends once the sidecar stops, but never between a write and the word of it.
    pub(super) async fn run(mut self, stopping: CancellationToken) {
        let render = Arc::clone(&self.render);
        loop {
            self.due = None;
            let Some(made) = stopping
                .run_until_cancelled(self.maker.make(&render.settings.content))
                .await
            else {
                return;
            };
            self.attempt(made).await;
            if stopping.run_until_cancelled(self.next()).await.is_none() {
                return;
            }
        }
    }

    /// Waits until the file is to be rendered anew.
    async fn next(&mut self) {
        let (due, render) = (self.due, Arc::clone(&self.render));
        let is_change = tokio::select! {
            () = self.changed() => true,
            () = render.requested.notified() => false,
            () = at(due) => false,
        };
        if is_change && !self.render.settings.debounce.is_zero() {
            self.settle().await;
        }
    }

    /// Secrets that rotate together are one change.
    async fn settle(&mut self) {
        let quiet = self.render.settings.debounce;
        let latest = Instant::now() + quiet * PATIENCE;
        loop {
            let until = (Instant::now() + quiet).min(latest);
            tokio::select! {
                () = sleep_until(until) => break,
                () = self.changed() => {}
            }
        }
    }

    /// Resolves when a secret that the file is made of changes.
    async fn changed(&mut self) {
        loop {
            match self.changes.recv().await {
                Ok(change) if self.maker.asked.contains(change.secret.as_str()) => return,
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => return,
                // The secrets are gone, so nothing changes any more.
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    async fn attempt(&mut self, made: Result<Made, Failure>) {
        let result = match made {
            Ok(made) => self.place(made).await,
            Err(failure) => Err(failure),
        };
        match result {
            Ok((made, was_written)) => self.succeed(made, was_written),
            Err(failure) => self.fail(failure),
        }
        self.render.attempts.send_modify(|attempts| *attempts += 1);
    }

    /// On a thread that may wait for the disk.
    async fn place(&mut self, made: Made) -> Result<(Made, bool), Failure> {
        let (render, mut target) = (Arc::clone(&self.render), std::mem::take(&mut self.target));
        let placed = tokio::task::spawn_blocking(move || {
            let placed = target.place(&render.settings, &made.bytes);
            (target, placed.map(|was_written| (made, was_written)))
        });
        match placed.await {
            Ok((target, placed)) => {
                self.target = target;
                placed
            }
            Err(error) => Err(Failure {
                reason: "write",
                message: format!("writing was given up: {error}"),
            }),
        }
    }

    fn succeed(&mut self, made: Made, was_written: bool) {
        let (render, now) = (&self.render, self.render.clock.now());
        self.failures = 0;
        self.due = made.previous_end.and_then(|end| from_now(end, now));
        render.note_use(now, &made.used);
        for used in &made.used {
            used.value.used(now);
        }
        let secrets: Vec<_> = made
            .used
            .iter()
            .map(|used| (used.secret.clone(), used.value.version().to_owned()))
            .collect();
        let file = render.settings.file.display();
        {
            let mut state = render.state();
            if state.failure.take().is_some() {
                info!(%file, "rendering it works again");
            }
            let written_at = if was_written {
                Some(now)
            } else {
                state
                    .written
                    .as_ref()
                    .and_then(|written| written.written_at)
            };
            state.written = Some(Written {
                confirmed_at: now,
                written_at,
                secrets: secrets.clone(),
            });
        }
        render.meters.succeeded(now, was_written);
        render.hold(made.used, was_written);
        if !was_written {
            return;
        }
        let versions: Vec<_> = secrets
            .iter()
            .map(|(secret, version)| format!("{secret} {version}"))
            .collect();
        info!(%file, secrets = versions.join(", "), "file written");
        self.audit.record("render.written", |event| {
            let secrets: Vec<_> = secrets
                .iter()
                .map(|(secret, version)| json!({ "secret": secret, "version": version }))
                .collect();
            event
                .with("file", file.to_string())
                .with("secrets", secrets)
        });
        if render.settings.notice.is_some() {
            render.due.notify_one();
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.failures = self.failures.saturating_add(1);
        self.due =
            Some(Instant::now() + spread(backoff(FIRST_BACKOFF, self.failures, self.max_backoff)));
        self.render.meters.failed(failure.reason);
        // Whoever reads the file uses what stands there all the same.
        self.render.note_use(self.render.clock.now(), &[]);
        let mut state = self.render.state();
        let is_news = state.failure.as_ref().is_none_or(|(_, before)| {
            // A provider's words may differ every time, and its secret's own failures are in the log.
            before.reason != failure.reason
                || (failure.reason != "secret" && before.message != failure.message)
        });
        if is_news {
            warn!(file = %self.render.settings.file.display(), reason = failure.reason, "the file stays as it is: {}", failure.message);
        }
        state.failure = Some((self.render.clock.now(), failure));
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// The instant of a time that is still to come.
fn from_now(end: Timestamp, now: Timestamp) -> Option<Instant> {
    let left = Duration::try_from(end.duration_since(now))
        .ok()
        .filter(|left| !left.is_zero())?;
    Instant::now().checked_add(left)
}
