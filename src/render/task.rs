//! The task that keeps a file in line with its secrets.

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
    FileContent, Render, RenderFailure, Shared,
    source::{ContentSource, Rendered},
    target::Target,
    template_file::TemplateFile,
};
use crate::{
    audit::Recorder,
    clock::{backoff, spread},
    secrets::{SecretChange, Secrets},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// If secrets keep changing, a change waits for this many times the debounce time at most.
const MAX_DEBOUNCES: u32 = 4;

pub(super) struct Renderer {
    render: Arc<Render>,
    secrets: Arc<Secrets>,
    source: ContentSource,
    template: Option<TemplateFile>,
    target: Target,
    changes: broadcast::Receiver<SecretChange>,
    audit: Recorder,
    max_backoff: Duration,
    failures: u32,
    /// When to render again even if no secret changes.
    due: Option<Instant>,
}

impl Renderer {
    pub(super) fn new(
        render: Arc<Render>,
        changes: broadcast::Receiver<SecretChange>,
        shared: &Shared,
    ) -> Self {
        let (secrets, max_backoff) = (Arc::clone(&shared.secrets), shared.max_backoff);
        Self {
            template: TemplateFile::of(&render.settings.content, max_backoff),
            render,
            source: ContentSource::new(Arc::clone(&secrets)),
            secrets,
            target: Target::default(),
            changes,
            audit: shared.audit.clone(),
            max_backoff,
            failures: 0,
            due: None,
        }
    }

    /// Ends when the sidecar stops, but never between a write and its notification.
    pub(super) async fn run(mut self, stopping: CancellationToken) {
        loop {
            self.due = None;
            let Some(rendered) = stopping.run_until_cancelled(self.rendered()).await else {
                return;
            };
            self.finish(rendered).await;
            if stopping.run_until_cancelled(self.next()).await.is_none() {
                return;
            }
        }
    }

    async fn rendered(&mut self) -> Result<Rendered, RenderFailure> {
        match &mut self.template {
            Some(file) => {
                let secrets = Arc::clone(&self.secrets);
                file.read(move |name| secrets.is_configured(name)).await;
                self.source.template(file.template()).await
            }
            None => self.source.render(&self.render.settings.content).await,
        }
    }

    /// Waits until the file has to be rendered again.
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

    /// Waits until the secrets stop changing: those that rotate together count as one change.
    async fn settle(&mut self) {
        let quiet = self.render.settings.debounce;
        let latest = Instant::now() + quiet * MAX_DEBOUNCES;
        loop {
            let until = (Instant::now() + quiet).min(latest);
            tokio::select! {
                () = sleep_until(until) => break,
                () = self.changed() => {}
            }
        }
    }

    /// Waits until a secret in the file, or its template, changes.
    async fn changed(&mut self) {
        let template = &self.template;
        let template_changed = async {
            match template {
                Some(file) => file.changed().await,
                None => std::future::pending().await,
            }
        };
        let (changes, requested) = (&mut self.changes, &self.source.requested);
        let secret_changed = async {
            loop {
                match changes.recv().await {
                    Ok(change) if requested.contains(change.secret.as_str()) => return,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => return,
                    // The secrets have stopped, so none of them changes.
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            () = secret_changed => {}
            () = template_changed => {}
        }
    }

    async fn finish(&mut self, rendered: Result<Rendered, RenderFailure>) {
        let result = match rendered {
            Ok(rendered) => self.write(rendered).await,
            Err(failure) => Err(failure),
        };
        match result {
            Ok((rendered, was_written)) => self.succeed(rendered, was_written),
            Err(failure) => self.fail(failure),
        }
        self.render.attempts.send_modify(|attempts| *attempts += 1);
    }

    /// Writes the file on a blocking thread.
    async fn write(&mut self, rendered: Rendered) -> Result<(Rendered, bool), RenderFailure> {
        let (render, mut target) = (Arc::clone(&self.render), std::mem::take(&mut self.target));
        let write = tokio::task::spawn_blocking(move || {
            let result = target.update(&render.settings, &rendered.bytes);
            (target, result.map(|was_written| (rendered, was_written)))
        });
        match write.await {
            Ok((target, result)) => {
                self.target = target;
                result
            }
            Err(error) => Err(RenderFailure {
                reason: "write",
                message: format!("writing was aborted: {error}"),
            }),
        }
    }

    fn succeed(&mut self, rendered: Rendered, was_written: bool) {
        let stale = self
            .template
            .as_ref()
            .and_then(TemplateFile::failure)
            .cloned();
        let (render, now) = (&self.render, self.render.clock.now());
        self.failures = 0;
        self.due = rendered.previous_end.and_then(|end| instant_of(end, now));
        render.record_use(now, &rendered.used);
        for used in &rendered.used {
            used.value.record_use(now);
        }
        let secrets: Vec<_> = rendered
            .used
            .iter()
            .map(|used| (used.secret.clone(), used.value.version().to_owned()))
            .collect();
        let file = render.settings.file.display();
        {
            let mut status = render.lock_status();
            if stale.is_none() && status.failure.take().is_some() {
                info!(%file, "rendering works again");
            }
            let written_at = if was_written {
                Some(now)
            } else {
                status
                    .content
                    .as_ref()
                    .and_then(|content| content.written_at)
            };
            status.content = Some(FileContent {
                confirmed_at: now,
                written_at,
                secrets: secrets.clone(),
            });
        }
        render.metrics.succeeded(now, was_written);
        if let Some(failure) = stale {
            self.report(failure);
        }
        render.remember(rendered.used, was_written);
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
            render.notice_due.notify_one();
        }
    }

    fn fail(&mut self, failure: RenderFailure) {
        self.failures = self.failures.saturating_add(1);
        self.due =
            Some(Instant::now() + spread(backoff(FIRST_BACKOFF, self.failures, self.max_backoff)));
        // The readers of the file still use its content.
        self.render.record_use(self.render.clock.now(), &[]);
        self.report(failure);
    }

    fn report(&self, failure: RenderFailure) {
        self.render.metrics.failed(failure.reason);
        let mut status = self.render.lock_status();
        let is_news = status.failure.as_ref().is_none_or(|(_, before)| {
            // A provider's message may differ every time, and failures of the secret are logged
            // already.
            before.reason != failure.reason
                || (failure.reason != "secret" && before.message != failure.message)
        });
        if is_news {
            warn!(
                file = %self.render.settings.file.display(), reason = failure.reason,
                "the file is left as it is: {}", failure.message
            );
        }
        status.failure = Some((self.render.clock.now(), failure));
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Returns the instant of a time in the future; None for the past.
fn instant_of(end: Timestamp, now: Timestamp) -> Option<Instant> {
    let left = Duration::try_from(end.duration_since(now))
        .ok()
        .filter(|left| !left.is_zero())?;
    Instant::now().checked_add(left)
}
