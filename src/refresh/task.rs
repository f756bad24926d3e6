//! The one task that refreshes a keyring.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{info, warn};

use super::{Failure, Keyring, Shared, Snapshot, Trigger, keyring::Request};
use crate::{
    backend::{self, ManifestStore, StoreError, WatchGuard},
    config,
    keyring::{Document, Expectations, KeyTable, Succession},
};

/// A writer's burst of events (create, write, rename) ends within this time and costs one refresh.
const SETTLE: Duration = Duration::from_millis(5);
const FIRST_BACKOFF: Duration = Duration::from_millis(250);

pub(super) struct Refresher {
    keyring: Arc<Keyring>,
    store: Arc<dyn ManifestStore>,
    expectations: Expectations,
    shared: Shared,
    requests: mpsc::Receiver<Request>,
    watch: Option<WatchGuard>,
    failures: u32,
    scheduled: (Trigger, Instant),
    unknown_allowed: Instant,
    warned_of_lease: bool,
    warned_of_watch: bool,
}

enum Outcome {
    Unchanged,
    Changed,
    /// In force, but some versions could not be opened.
    Partial,
}

impl Outcome {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Changed => "changed",
            Self::Partial => "partial",
        }
    }
}

impl Refresher {
    pub(super) fn new(
        keyring: Arc<Keyring>,
        settings: &config::Keyring,
        shared: Shared,
        requests: mpsc::Receiver<Request>,
    ) -> Self {
        let expectations = Expectations {
            name: settings.name.clone(),
            min_generation: settings.min_generation,
            trusted_signers: settings.trusted_signers.clone(),
        };
        let now = Instant::now();
        Self {
            keyring,
            store: backend::store(&settings.location),
            expectations,
            shared,
            requests,
            watch: None,
            failures: 0,
            scheduled: (Trigger::Start, now),
            unknown_allowed: now,
            warned_of_lease: false,
            warned_of_watch: false,
        }
    }

    pub(super) async fn run(mut self) {
        let shutdown = self.shared.shutdown.clone();
        let forever = async {
            loop {
                let batch = self.next().await;
                self.serve(batch).await;
            }
        };
        shutdown.run_until_cancelled(forever).await;
    }

    /// Waits until a refresh is due, and gives everybody who wants it.
    async fn next(&mut self) -> Vec<Request> {
        let (trigger, at) = self.scheduled;
        let first = tokio::select! {
            Some(request) = self.requests.recv() => request,
            () = sleep_until(at) => Request { trigger, done: None },
        };
        if first.trigger == Trigger::File {
            sleep(SETTLE).await;
        }
        let mut batch = vec![first];
        // Garbage may name unknown versions without end; the store is asked at a bounded rate, and whoever comes meanwhile joins.
        while batch.iter().all(|request| request.trigger == Trigger::UnknownVersion) {
            tokio::select! {
                Some(request) = self.requests.recv() => batch.push(request),
                () = sleep_until(self.unknown_allowed) => break,
            }
        }
        while let Ok(request) = self.requests.try_recv() {
            batch.push(request);
        }
        batch
    }

    async fn serve(&mut self, batch: Vec<Request>) {
        let trigger = batch.first().map_or(Trigger::Poll, |request| request.trigger);
        let result = self.refresh().await;
        let now = Instant::now();
        if trigger == Trigger::UnknownVersion {
            self.unknown_allowed = now + self.shared.settings.unknown_interval;
        }
        let label = match &result {
            Ok(outcome) => outcome.as_str(),
            Err(failure) => failure.code,
        };
        self.keyring.meters.refreshed(&self.shared.registry, trigger, label);
        self.report(trigger, &result);
        self.warn_of_lease();
        self.scheduled = match result {
            Ok(Outcome::Changed | Outcome::Unchanged) => {
                self.failures = 0;
                (Trigger::Poll, now + spread(self.shared.settings.poll))
            }
            Ok(Outcome::Partial) | Err(_) => {
                self.failures = self.failures.saturating_add(1);
                (Trigger::Retry, now + spread(backoff(self.failures, self.shared.settings.max_backoff)))
            }
        };
        for done in batch.into_iter().filter_map(|request| request.done) {
            // Whoever gave up waiting needs no answer.
            let _ = done.send(());
        }
    }

    async fn refresh(&mut self) -> Result<Outcome, Failure> {
        // Before reading, so that no change falls between the two.
        self.ensure_watch();
        let read_at = self.shared.clock.now();
        let limit = self.shared.settings.read_timeout;
        let read = timeout(limit, self.store.read(self.shared.settings.manifest_bytes));
        let bytes = match read.await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => {
                if matches!(error, StoreError::Missing(_)) {
                    // The folder may be gone with the file, and the watch with the folder.
                    self.watch = None;
                }
                return Err(error.into());
            }
            Err(_) => return Err(Failure::timed_out(&format!("{}: reading the manifest", self.keyring.location()), limit)),
        };

        let current = self.keyring.snapshot().clone();
        let in_force = current.as_deref().map(|snapshot| &snapshot.table);
        let document = match in_force {
            Some(table) if table.document().bytes() == bytes => Arc::clone(table.document()),
            _ => Arc::new(Document::parse(&bytes)?),
        };
        let succession = KeyTable::examine(in_force, &document, &self.expectations)?;
        if let (Succession::Unchanged, Some(table)) = (succession, in_force)
            && table.unopened().next().is_none()
        {
            self.keyring.confirm(table, read_at);
            return Ok(Outcome::Unchanged);
        }

        let wanted = KeyTable::wanted(in_force, &document);
        let opened = self.shared.keks.open(document.manifest().id, wanted).await;
        let now = self.shared.clock.now();
        let table = KeyTable::build(in_force, Arc::clone(&document), opened, self.keyring.wave().clone(), now)?;
        let outcome = if table.unopened().next().is_some() { Outcome::Partial } else { Outcome::Changed };
        self.keyring.confirm(&table, read_at);
        self.keyring.publish(Snapshot::new(table, current.as_deref(), self.keyring.name(), &self.shared.registry));
        Ok(outcome)
    }

    fn ensure_watch(&mut self) {
        if self.watch.is_some() {
            return;
        }
        // Weak, or the watch would keep the keyring alive that owns it.
        let keyring = Arc::downgrade(&self.keyring);
        let changed = move || {
            if let Some(keyring) = keyring.upgrade() {
                keyring.request(Trigger::File);
            }
        };
        match self.store.watch(Box::new(changed)) {
            Ok(guard) => {
                self.watch = Some(guard);
                self.warned_of_watch = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.warned_of_watch, true) {
                    warn!(keyring = %self.keyring.name(), %error, poll = ?self.shared.settings.poll, "changes are found by polling alone");
                }
            }
        }
    }

    /// Logs a failure once, however often it repeats, and its end.
    fn report(&self, trigger: Trigger, result: &Result<Outcome, Failure>) {
        let name = self.keyring.name();
        let now = self.shared.clock.now();
        let snapshot = self.keyring.snapshot().clone();
        let unopened = snapshot.as_deref().and_then(|snapshot| {
            let reasons: Vec<String> =
                snapshot.table.unopened().map(|(version, reason)| format!("version {version}: {reason}")).collect();
            (!reasons.is_empty()).then(|| Failure { code: "kek_unavailable", message: reasons.join("; ") })
        });
        let failure = match result {
            Ok(_) => unopened,
            Err(failure) => Some(failure.clone()),
        };
        let before = self.keyring.record(now, result.is_ok(), failure.clone());
        let is_news = before != failure;
        if let Some(failure) = &failure {
            if is_news {
                let serving = snapshot.as_deref().map(|snapshot| snapshot.table.generation());
                warn!(keyring = %name, trigger = trigger.as_str(), code = failure.code, generation_served = serving, "refresh: {failure}");
            }
        } else if before.is_some() {
            info!(keyring = %name, trigger = trigger.as_str(), "refreshing works again");
        }
        let changed = matches!(result, Ok(Outcome::Changed)) || (matches!(result, Ok(Outcome::Partial)) && is_news);
        if let Some(snapshot) = snapshot.filter(|_| changed) {
            let table = &snapshot.table;
            info!(keyring = %name, trigger = trigger.as_str(), generation = table.generation(), primary = table.primary(now), "keyring in force");
        }
    }

    fn warn_of_lease(&mut self) {
        let snapshot = self.keyring.snapshot();
        let Some(table) = snapshot.as_deref().map(|snapshot| &snapshot.table) else { return };
        let now = self.shared.clock.now();
        let end = self.keyring.lease_end(table);
        let late = now.checked_add(table.manifest().policy.encrypt_lease.0 / 2).is_ok_and(|half_ahead| half_ahead > end);
        if late && !self.warned_of_lease {
            warn!(
                keyring = %self.keyring.name(), %end,
                "more than half of the encrypt lease is over without a confirmed manifest; encrypting ends with it. Check {}", self.keyring.location()
            );
        }
        self.warned_of_lease = late;
    }
}

/// Between three and five quarters of `interval`, so that a fleet doesn't act in step.
fn spread(interval: Duration) -> Duration {
    interval.mul_f64(0.75 + fastrand::f64() / 2.0)
}

fn backoff(failures: u32, longest: Duration) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest)
}
