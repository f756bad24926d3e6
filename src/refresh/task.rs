//! The one task that refreshes a keyring.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{info, warn};

use super::{
    Failure, Keyring, Shared, Snapshot, Trigger,
    keyring::{Request, Waiter},
    recall::Copy,
    witness::Witness,
};
use crate::{
    backend::{self, Changed, ManifestStore, StoreError, WatchGuard},
    clock::{backoff, spread},
    config,
    keks::UnwrapTasks,
    keyring::{Document, Expectations, KeyTable, Opened, Succession},
    model::KekScope,
};

/// A writer's burst of events (create, write, rename) ends within this time and costs one refresh.
const SETTLE: Duration = Duration::from_millis(5);
/// How long a manifest waits for its slower KEKs before what has opened is put in force without the rest.
const GRACE: Duration = Duration::from_millis(500);
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// Manifests longer than this, in bytes, are parsed apart from the task.
const LONG: usize = 64 << 10;

pub(super) struct Refresher {
    pub(super) keyring: Arc<Keyring>,
    store: Arc<dyn ManifestStore>,
    pub(super) expectations: Expectations,
    scope: Arc<KekScope>,
    pub(super) shared: Shared,
    pub(super) copy: Option<Copy>,
    requests: mpsc::Receiver<Request>,
    watch: Option<WatchGuard>,
    candidate: Option<Candidate>,
    waiters: Vec<Waiter>,
    failures: u32,
    scheduled: (Trigger, Instant),
    unknown_allowed: Instant,
    warned_of_lease: bool,
    warned_of_watch: bool,
    witness: Witness,
}

/// A manifest that passed examination and whose versions are being opened.
struct Candidate {
    document: Arc<Document>,
    read_at: Timestamp,
    trigger: Trigger,
    opening: UnwrapTasks,
    /// What has been opened and isn't in force yet, and what didn't open.
    opened: Opened,
}

enum Event {
    /// A refresh is due.
    Due(Vec<Request>),
    /// A KEK has answered after the grace.
    Opened,
}

pub(super) enum Outcome {
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

impl Candidate {
    /// Takes in the result of every version that is being opened, or of those that open within the grace.
    async fn gather(&mut self) {
        let all = async {
            while let Some((version, result)) = self.opening.next().await {
                self.opened.insert(version, result);
            }
        };
        // Whoever is late is installed later.
        let _ = timeout(GRACE, all).await;
    }
}

impl Refresher {
    pub(super) fn new(
        keyring: Arc<Keyring>,
        store: Arc<dyn ManifestStore>,
        settings: &config::Keyring,
        shared: Shared,
        requests: mpsc::Receiver<Request>,
    ) -> Self {
        let now = Instant::now();
        Self {
            keyring,
            store,
            expectations: Expectations::from(settings),
            scope: Arc::new(settings.keks.clone()),
            copy: Copy::new(settings, &shared.settings),
            witness: Witness::new(shared.audit.clone()),
            shared,
            requests,
            watch: None,
            candidate: None,
            waiters: Vec::new(),
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
            self.recall().await;
            self.scheduled = (Trigger::Start, Instant::now());
            loop {
                match self.next().await {
                    Event::Due(batch) => self.serve(batch).await,
                    Event::Opened => self.serve_late().await,
                }
                self.keep_copy().await;
            }
        };
        shutdown.run_until_cancelled(forever).await;
    }

    /// Waits until a refresh is due, and gives everybody who wants it; or until a KEK answers late.
    async fn next(&mut self) -> Event {
        let (trigger, at) = self.scheduled;
        let candidate = &mut self.candidate;
        let late = async {
            if let Some(candidate) = candidate
                && let Some((version, result)) = candidate.opening.next().await
            {
                candidate.opened.insert(version, result);
            } else {
                std::future::pending().await
            }
        };
        let first = tokio::select! {
            Some(request) = self.requests.recv() => request,
            () = sleep_until(at) => Request { trigger, waiter: None },
            () = late => return Event::Opened,
        };
        if first.trigger == Trigger::File {
            sleep(SETTLE).await;
        }
        let mut batch = vec![first];
        // Garbage may name unknown versions without end; the store is asked at a bounded rate, and whoever comes meanwhile joins.
        while batch
            .iter()
            .all(|request| request.trigger == Trigger::UnknownVersion)
        {
            tokio::select! {
                Some(request) = self.requests.recv() => batch.push(request),
                () = sleep_until(self.unknown_allowed) => break,
            }
        }
        while let Ok(request) = self.requests.try_recv() {
            batch.push(request);
        }
        Event::Due(batch)
    }

    async fn serve(&mut self, batch: Vec<Request>) {
        let trigger = batch
            .first()
            .map_or(Trigger::Poll, |request| request.trigger);
        let result = self.refresh(trigger).await;
        if trigger == Trigger::UnknownVersion {
            self.unknown_allowed = Instant::now() + self.shared.settings.unknown_interval;
        }
        self.waiters
            .extend(batch.into_iter().filter_map(|request| request.waiter));
        self.conclude(trigger, result);
    }

    /// Puts in force what KEKs gave after the grace.
    async fn serve_late(&mut self) {
        let Some(candidate) = &mut self.candidate else {
            return;
        };
        candidate.gather().await;
        let trigger = candidate.trigger;
        let result = self.install();
        self.conclude(trigger, result);
    }

    /// Counts, reports and schedules what follows from a refresh, and answers those whose version is decided.
    pub(super) fn conclude(&mut self, trigger: Trigger, result: Result<Outcome, Failure>) {
        let label = match &result {
            Ok(outcome) => outcome.as_str(),
            Err(failure) => failure.code,
        };
        self.keyring
            .meters
            .refreshed(&self.shared.registry, trigger, label);
        self.report(trigger, &result);
        self.witness.observe(&self.keyring, self.shared.clock.now());
        self.warn_of_lease();
        let now = Instant::now();
        self.scheduled = match result {
            Ok(Outcome::Changed | Outcome::Unchanged) => {
                self.failures = 0;
                (Trigger::Poll, now + spread(self.shared.settings.poll))
            }
            Ok(Outcome::Partial) | Err(_) => {
                self.failures = self.failures.saturating_add(1);
                (
                    Trigger::Retry,
                    now + spread(backoff(
                        FIRST_BACKOFF,
                        self.failures,
                        self.shared.settings.max_backoff,
                    )),
                )
            }
        };
        if self
            .candidate
            .as_ref()
            .is_some_and(|candidate| candidate.opening.is_empty())
        {
            self.candidate = None;
        }
        let undecided = |waiter: &mut Waiter| {
            self.candidate
                .as_ref()
                .is_some_and(|candidate| candidate.opening.is_in_progress(waiter.version))
        };
        for waiter in self.waiters.extract_if(.., |waiter| !undecided(waiter)) {
            // Whoever gave up waiting needs no answer.
            let _ = waiter.done.send(());
        }
    }

    async fn refresh(&mut self, trigger: Trigger) -> Result<Outcome, Failure> {
        let read_at = self.shared.clock.now();
        let limit = self.shared.settings.read_timeout;
        let read = self.store.read_watched(
            self.shared.settings.manifest_bytes,
            self.watch.take(),
            self.changed(),
        );
        let bytes = match backend::within(limit, read).await {
            Ok((read, watch)) => {
                self.keep_watch(watch);
                read?
            }
            Err(late) => {
                return Err(Failure::timed_out(
                    &format!("{}: reading the manifest", self.keyring.location()),
                    limit,
                    late,
                ));
            }
        };
        let current = self.keyring.snapshot().clone();
        let document = match current.as_deref().map(|snapshot| snapshot.table.document()) {
            Some(document) if *document.bytes() == bytes => Arc::clone(document),
            _ => Arc::new(parse(bytes).await?),
        };
        self.take_up(document, read_at, trigger).await
    }

    /// Examines a manifest that was read, opens what is new in it, and puts it in force.
    pub(super) async fn take_up(
        &mut self,
        document: Arc<Document>,
        read_at: Timestamp,
        trigger: Trigger,
    ) -> Result<Outcome, Failure> {
        let current = self.keyring.snapshot().clone();
        let in_force = current.as_deref().map(|snapshot| &snapshot.table);
        let succession = KeyTable::examine(in_force, &document, &self.expectations)?;
        if let (Succession::Unchanged, Some(table)) = (succession, in_force)
            && table.unopened().next().is_none()
        {
            self.candidate = None;
            self.confirm(table, read_at);
            return Ok(Outcome::Unchanged);
        }

        // KEKs that are still busy with the same manifest need not be asked again.
        let candidate = match self.candidate.take() {
            Some(candidate) if candidate.document.canonical() == document.canonical() => candidate,
            _ => Candidate {
                document: Arc::clone(&document),
                read_at,
                trigger,
                opening: UnwrapTasks::default(),
                opened: Opened::new(),
            },
        };
        let candidate = self.candidate.insert(Candidate {
            read_at,
            trigger,
            ..candidate
        });
        for version in KeyTable::wanted(in_force, &document) {
            if !matches!(candidate.opened.get(&version.version), Some(Ok(_))) {
                candidate.opening.start(
                    &self.shared.keks,
                    document.manifest().id,
                    version,
                    &self.scope,
                );
            }
        }
        candidate.gather().await;
        self.install()
    }

    /// Puts the candidate in force with the versions that have opened so far.
    fn install(&mut self) -> Result<Outcome, Failure> {
        let Some(candidate) = &mut self.candidate else {
            return Ok(Outcome::Unchanged);
        };
        let current = self.keyring.snapshot().clone();
        let in_force = current.as_deref().map(|snapshot| &snapshot.table);
        let (document, wave) = (Arc::clone(&candidate.document), self.keyring.wave().clone());
        let table = KeyTable::build(
            in_force,
            document,
            &candidate.opened,
            wave,
            self.shared.clock.now(),
        )?;
        // The table has them now, and alone decides how long they stay in memory.
        candidate.opened.retain(|_, result| result.is_err());
        let read_at = candidate.read_at;
        let outcome = if table.unopened().next().is_some() {
            Outcome::Partial
        } else {
            Outcome::Changed
        };
        self.confirm(&table, read_at);
        self.keyring.publish(Snapshot::new(
            table,
            current.as_deref(),
            self.keyring.name(),
            &self.shared.registry,
        ));
        Ok(outcome)
    }

    /// Renews the lease, unless an older version stands in for a primary that no KEK opens: that must not go on for ever (I11).
    fn confirm(&self, table: &KeyTable, read_at: Timestamp) {
        if table.has_open_primary(self.shared.clock.now()) {
            self.keyring.confirm(table, read_at);
        }
    }

    fn changed(&self) -> Changed {
        // Weak, or the watch would keep the keyring alive that owns it.
        let keyring = Arc::downgrade(&self.keyring);
        Arc::new(move || {
            if let Some(keyring) = keyring.upgrade() {
                keyring.request(Trigger::File);
            }
        })
    }

    fn keep_watch(&mut self, watch: Result<WatchGuard, StoreError>) {
        match watch {
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
            let reasons: Vec<String> = snapshot
                .table
                .unopened()
                .map(|(version, reason)| format!("version {version}: {reason}"))
                .collect();
            (!reasons.is_empty()).then(|| Failure {
                code: "kek_unavailable",
                message: reasons.join("; "),
            })
        });
        let failure = match result {
            Ok(_) => unopened,
            Err(failure) => Some(failure.clone()),
        };
        let before = self.keyring.record(now, result.is_ok(), failure.clone());
        let is_news = before != failure;
        if let Some(failure) = &failure {
            if is_news {
                self.witness.refused(&self.keyring, failure);
                let serving = snapshot
                    .as_deref()
                    .map(|snapshot| snapshot.table.generation());
                warn!(keyring = %name, trigger = trigger.as_str(), code = failure.code, generation_served = serving, "refresh: {failure}");
            }
        } else if before.is_some() {
            info!(keyring = %name, trigger = trigger.as_str(), "refreshing works again");
        }
        let changed = matches!(result, Ok(Outcome::Changed))
            || (matches!(result, Ok(Outcome::Partial)) && is_news);
        if let Some(snapshot) = snapshot.filter(|_| changed) {
            let table = &snapshot.table;
            info!(keyring = %name, trigger = trigger.as_str(), generation = table.generation(), primary = table.primary(now), "keyring in force");
        }
    }

    fn warn_of_lease(&mut self) {
        let snapshot = self.keyring.snapshot();
        let Some(table) = snapshot.as_deref().map(|snapshot| &snapshot.table) else {
            return;
        };
        let now = self.shared.clock.now();
        let end = self.keyring.lease_end(table);
        let late = now
            .checked_add(table.manifest().policy.encrypt_lease.0 / 2)
            .is_ok_and(|half_ahead| half_ahead > end);
        if late && !self.warned_of_lease {
            warn!(
                keyring = %self.keyring.name(), %end,
                "more than half of the encrypt lease is over without a confirmed manifest; encrypting ends with it. Check {}", self.keyring.location()
            );
        }
        self.warned_of_lease = late;
    }
}

pub(super) async fn parse(bytes: Bytes) -> Result<Document, Failure> {
    let parsed = if bytes.len() > LONG {
        backend::aside(move || Document::parse(bytes)).await
    } else {
        Document::parse(bytes)
    };
    Ok(parsed?)
}
