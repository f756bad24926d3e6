//! The task that refreshes a keyring.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::warn;

use super::{
    Keyring, RefreshFailure, Shared, Snapshot, Trigger,
    cache::CachedManifest,
    candidate::Candidate,
    keyring::{Request, Waiter},
    report::{RefreshOutcome, Reporter},
    trust::Trust,
};
use crate::{
    backend::{self, ManifestStore},
    clock::{backoff, spread},
    config,
    files::{self, ChangeCallback, WatchGuard},
    keyring::{self, Document, KeyTable, ManifestError, Rejection, Slot, Succession},
    schedule::{Schedule, settle},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// The least time between two turns of versions that wait for one.
const TURN_INTERVAL: Duration = Duration::from_secs(1);
/// Manifests larger than this, in bytes, are parsed on a blocking thread.
const LARGE: usize = 64 << 10;

pub(super) struct Refresher {
    keyring: Arc<Keyring>,
    store: Arc<dyn ManifestStore>,
    /// What the candidate was examined by.
    trust: Arc<Trust>,
    shared: Shared,
    cache: Option<CachedManifest>,
    /// The manifest from the cache: the base until one is active.
    cached: Option<Arc<Document>>,
    requests: mpsc::Receiver<Request>,
    watch: Option<WatchGuard>,
    candidate: Option<Candidate>,
    waiters: Vec<Waiter>,
    schedule: Schedule,
    /// When the next refresh for an unknown version may start.
    unknown_allowed: Instant,
    /// Whether a request waits for a version, so that none waits for its turn.
    is_demanded: bool,
    /// When the next turn may be taken.
    turn_allowed: Instant,
    /// The turns in a row that opened nothing.
    turn_failures: u32,
    reporter: Reporter,
}

/// Why the task woke up.
enum WakeUp {
    /// A refresh is due, for these requests.
    Due(Vec<Request>),
    /// A KEK answered after the grace.
    Unwrapped,
}

impl Refresher {
    pub(super) fn new(
        keyring: Arc<Keyring>,
        store: Arc<dyn ManifestStore>,
        settings: &config::Keyring,
        shared: Shared,
        requests: mpsc::Receiver<Request>,
    ) -> Self {
        Self {
            reporter: Reporter::new(&keyring, &shared),
            trust: keyring.trust(),
            keyring,
            store,
            cache: CachedManifest::new(settings, &shared.settings),
            cached: None,
            schedule: Schedule::start(FIRST_BACKOFF, shared.settings.max_backoff),
            shared,
            requests,
            watch: None,
            candidate: None,
            waiters: Vec::new(),
            unknown_allowed: Instant::now(),
            is_demanded: false,
            turn_allowed: Instant::now(),
            turn_failures: 0,
        }
    }

    pub(super) async fn run(mut self) {
        let shutdown = self.shared.shutdown.clone();
        let forever = async {
            self.start_from_cache().await;
            self.schedule.restart();
            loop {
                match self.next().await {
                    WakeUp::Due(batch) => self.handle(batch).await,
                    WakeUp::Unwrapped => self.publish_late().await,
                }
                self.update_cache().await;
            }
        };
        shutdown.run_until_cancelled(forever).await;
    }

    /// Waits until a refresh is due and returns all requests for it, or until a KEK answers late.
    async fn next(&mut self) -> WakeUp {
        let first = loop {
            let turn = self.next_turn();
            let candidate = &mut self.candidate;
            let late = async {
                match candidate {
                    Some(candidate) => candidate.gather_one().await,
                    None => std::future::pending().await,
                }
            };
            let request = tokio::select! {
                Some(request) = self.requests.recv() => request,
                trigger = self.schedule.elapsed() => Request { trigger, waiter: None },
                () = turn => Request { trigger: Trigger::Turn, waiter: None },
                () = late => return WakeUp::Unwrapped,
            };
            if let Some(request) = self.if_unmet(request) {
                break request;
            }
        };
        settle(first.trigger).await;
        let mut batch = vec![first];
        // Forged ciphertexts can name any number of unknown versions. The store is read at a
        // bounded rate, and requests that arrive in the meantime join the batch.
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
        WakeUp::Due(batch)
    }

    /// Waits for the next turn of a version; forever if none waits for one.
    fn next_turn(&self) -> impl Future<Output = ()> + use<> {
        let snapshot = self.keyring.snapshot();
        let turn = snapshot
            .as_ref()
            .and_then(|active| active.table.next_turn());
        let at = turn.map(|turn| {
            let left = turn.duration_since(self.shared.clock.now());
            // Times of day are rounded to milliseconds.
            let left = Duration::try_from(left).unwrap_or_default() + Duration::from_millis(1);
            (Instant::now() + left).max(self.turn_allowed)
        });
        async move {
            match at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Returns a request, unless what was done since it was made has met it: that found the
    /// version. Then nothing needs to be read.
    fn if_unmet(&mut self, request: Request) -> Option<Request> {
        let snapshot = self.keyring.snapshot().clone();
        let is_met = |version| snapshot.is_some_and(|snapshot| snapshot.has_met(version));
        match request.waiter {
            Some(waiter) if is_met(waiter.version) => {
                self.waiters.push(waiter);
                self.answer_waiters();
                None
            }
            waiter => Some(Request { waiter, ..request }),
        }
    }

    async fn handle(&mut self, batch: Vec<Request>) {
        self.is_demanded = batch.iter().any(|request| request.waiter.is_some());
        self.serve(batch).await;
        self.is_demanded = false;
    }

    async fn serve(&mut self, batch: Vec<Request>) {
        let is_settled = self.examine_offer().await;
        self.take_turns(&batch).await;
        let batch: Vec<Request> = batch
            .into_iter()
            .filter_map(|request| self.if_unmet(request))
            .collect();
        let mut triggers = batch.iter().map(|request| request.trigger);
        let needs_no_read = |trigger: &Trigger| matches!(trigger, Trigger::Offer | Trigger::Turn);
        let trigger = match triggers.find(|trigger| !needs_no_read(trigger)) {
            Some(trigger) => trigger,
            // The location has nothing newer.
            None if is_settled => return self.finish_candidate(),
            None => Trigger::Offer,
        };
        let result = self.refresh(trigger).await;
        if trigger == Trigger::UnknownVersion {
            self.unknown_allowed = Instant::now() + self.shared.settings.unknown_interval;
        }
        self.waiters
            .extend(batch.into_iter().filter_map(|request| request.waiter));
        self.finish(trigger, result);
    }

    /// Unwraps versions of the active manifest that wait for their turn, if it has come or a
    /// request names one. What the location holds doesn't matter for them.
    async fn take_turns(&mut self, batch: &[Request]) {
        let current = self.keyring.snapshot().clone();
        let Some(table) = current.as_deref().map(|snapshot| &snapshot.table) else {
            return;
        };
        let now = self.shared.clock.now();
        let has_come = table.next_turn().is_some_and(|turn| turn <= now);
        let waits = |version| matches!(table.slot(version), Some(Slot::Waiting(_)));
        let mut waiters = batch.iter().filter_map(|request| request.waiter.as_ref());
        if !has_come && !waiters.any(|waiter| waits(waiter.version)) {
            return;
        }
        self.turn_failures = self.turn_failures.saturating_add(1);
        let pause = backoff(
            TURN_INTERVAL,
            self.turn_failures,
            self.shared.settings.max_backoff,
        );
        self.turn_allowed = Instant::now() + spread(pause);
        if self
            .candidate
            .as_ref()
            .is_some_and(|newer| newer.succeeds(table))
        {
            // Its KEKs are being asked, for these versions as well.
            return;
        }
        let trigger = if has_come {
            Trigger::Turn
        } else {
            Trigger::UnknownVersion
        };
        let result = self
            .apply(Arc::clone(table.document()), None, trigger)
            .await;
        self.reporter.report_aside(trigger, &result);
        match result {
            Ok(RefreshOutcome::Partial) => {
                self.schedule
                    .wake_by(Instant::now() + FIRST_BACKOFF, Trigger::Retry);
            }
            Ok(_) => self.turn_failures = 0,
            // The location may have a manifest that is accepted: nothing postpones its next read.
            Err(_) => {}
        }
    }

    /// Returns the versions of a manifest that are left for later, each with the time of its turn.
    fn waiting(&self, document: &Document, active: Option<&KeyTable>) -> BTreeMap<u32, Timestamp> {
        let Some(active) = active.filter(|_| !self.is_demanded) else {
            // It serves nothing yet, or a request is waiting.
            return BTreeMap::new();
        };
        let now = self.shared.clock.now();
        let mut waiting = keyring::waiting(document.manifest(), self.shared.instance, now);
        // One that was tried is tried until it opens.
        waiting.retain(|version, _| !matches!(active.slot(*version), Some(Slot::NotUnwrapped(_))));
        waiting
    }

    /// Publishes versions that were unwrapped after the grace.
    async fn publish_late(&mut self) {
        if self.trust.replaced.is_cancelled() {
            // The config that replaced it has requested a refresh.
            self.candidate = None;
            return;
        }
        let Some(candidate) = &mut self.candidate else {
            return;
        };
        candidate.gather().await;
        let trigger = candidate.trigger;
        let result = self.publish();
        self.finish(trigger, result);
    }

    /// Reports and schedules after a refresh, and answers waiters.
    fn finish(&mut self, trigger: Trigger, result: Result<RefreshOutcome, RefreshFailure>) {
        self.reporter.report(trigger, &result);
        match result {
            Ok(RefreshOutcome::Changed | RefreshOutcome::Unchanged | RefreshOutcome::Behind) => {
                self.schedule.succeeded(self.shared.settings.poll);
            }
            Ok(RefreshOutcome::Partial) | Err(_) => self.schedule.failed(),
        }
        self.finish_candidate();
    }

    /// Forgets the candidate if nothing is left of it, and answers waiters.
    fn finish_candidate(&mut self) {
        self.candidate
            .take_if(|candidate| candidate.unwraps.is_empty());
        self.answer_waiters();
    }

    /// Answers the waiters whose version no KEK is asked for any more.
    fn answer_waiters(&mut self) {
        let candidate = self.candidate.as_ref();
        let is_decided = |waiter: &mut Waiter| {
            !candidate.is_some_and(|candidate| candidate.unwraps.is_in_progress(waiter.version))
        };
        for waiter in self.waiters.extract_if(.., is_decided) {
            // A caller that gave up needs no answer.
            let _ = waiter.done.send(());
        }
    }

    /// Publishes a manifest that was offered, if there is one and it passes. What is wrong with it
    /// is no failure of the keyring. Returns whether the location needn't be read because of it.
    async fn examine_offer(&mut self) -> bool {
        let Some(bytes) = self.keyring.take_offer() else {
            return true;
        };
        // A fresh sidecar trusts its location alone.
        let active = self.keyring.snapshot().clone();
        let Some(active) = active.map(|snapshot| snapshot.table.generation()) else {
            return false;
        };
        let result = match parse(bytes).await {
            Ok(document) if document.manifest().generation <= active => return true,
            Ok(document) => self.apply(Arc::new(document), None, Trigger::Offer).await,
            Err(error) => Err(error.into()),
        };
        self.reporter.report_aside(Trigger::Offer, &result);
        matches!(result, Ok(RefreshOutcome::Changed))
    }

    async fn refresh(&mut self, trigger: Trigger) -> Result<RefreshOutcome, RefreshFailure> {
        let read_at = self.shared.clock.now();
        let limit = self.shared.settings.read_timeout;
        let read = self.store.read_watched(
            self.shared.settings.manifest_bytes,
            self.watch.take(),
            self.changed(),
        );
        let bytes = match backend::within(limit, read).await {
            Ok((read, watch)) => {
                self.watch = watch;
                read?
            }
            Err(late) => {
                let location = self.keyring.location();
                return Err(late.on(location, Some("refresh.read_timeout")).into());
            }
        };
        let current = self.keyring.snapshot().clone();
        let document = match current.as_deref().map(|snapshot| snapshot.table.document()) {
            Some(document) if *document.bytes() == bytes => Arc::clone(document),
            _ => Arc::new(parse(bytes).await?),
        };
        self.apply(document, Some(read_at), trigger).await
    }

    /// Examines a manifest, unwraps the versions that are new in it, and publishes it. `read_at` is
    /// when it was read from the location, or when that confirmed the cached copy.
    async fn apply(
        &mut self,
        document: Arc<Document>,
        read_at: Option<Timestamp>,
        trigger: Trigger,
    ) -> Result<RefreshOutcome, RefreshFailure> {
        self.trust_as_configured();
        let current = self.keyring.snapshot().clone();
        let active = current.as_deref().map(|snapshot| &snapshot.table);
        let base = active
            .map(|table| Arc::clone(table.document()))
            .or_else(|| self.cached.clone());
        let succession = match examine(base, Arc::clone(&document), Arc::clone(&self.trust)).await {
            Ok(succession) => succession,
            Err(rejection) => return self.rejected(rejection, active),
        };
        let waiting = self.waiting(&document, active);
        let mut missing = KeyTable::versions_to_unwrap(active, &document);
        missing.retain(|version| !waiting.contains_key(&version.version));
        if let (Succession::Unchanged, Some(table)) = (succession, active)
            && missing.is_empty()
        {
            self.candidate = None;
            let lost = current.as_deref().map_or(&[][..], Snapshot::lost);
            if !lost.is_empty() {
                return Err(Rejection::LostVersion(lost.to_vec()).into());
            }
            self.confirm(table, read_at);
            return Ok(RefreshOutcome::Unchanged);
        }

        let candidate = Candidate::resume(
            self.candidate.take(),
            Arc::clone(&document),
            succession,
            read_at,
            trigger,
            waiting,
        );
        let candidate = self.candidate.insert(candidate);
        for version in missing {
            if !matches!(candidate.opened.get(&version.version), Some(Ok(_))) {
                candidate.unwraps.start(
                    &self.shared.keks,
                    document.manifest().id,
                    version,
                    &self.trust.scope,
                    &self.trust.replaced,
                );
            }
        }
        candidate.gather().await;
        self.publish()
    }

    /// Takes over what the config lets the keyring trust now. A candidate that was examined by
    /// something else is given up.
    fn trust_as_configured(&mut self) {
        let trust = self.keyring.trust();
        if !Arc::ptr_eq(&trust, &self.trust) {
            self.candidate = None;
            self.trust = trust;
        }
    }

    fn rejected(
        &self,
        rejection: Rejection,
        active: Option<&KeyTable>,
    ) -> Result<RefreshOutcome, RefreshFailure> {
        match (&rejection, active) {
            (Rejection::Behind { .. }, Some(table))
                if self.keyring.may_lag(table, self.shared.clock.now()) =>
            {
                return Ok(RefreshOutcome::Behind);
            }
            // Every other word is there, so the loss is genuine.
            (Rejection::LostVersion(versions), _) => self.keyring.withhold(versions),
            _ => {}
        }
        Err(rejection.into())
    }

    /// Publishes the candidate with the versions that are unwrapped so far.
    fn publish(&mut self) -> Result<RefreshOutcome, RefreshFailure> {
        let Some(candidate) = &mut self.candidate else {
            return Ok(RefreshOutcome::Unchanged);
        };
        let current = self.keyring.snapshot().clone();
        let table = KeyTable::build(
            current.as_deref().map(|snapshot| &snapshot.table),
            Arc::clone(&candidate.document),
            candidate.succession,
            &candidate.opened,
            &candidate.waiting,
            self.keyring.wave().clone(),
            self.shared.clock.now(),
        )?;
        // The table owns the keys from here on and decides how long they stay in memory.
        candidate.opened.retain(|_, result| result.is_err());
        let read_at = candidate.read_at;
        let outcome = if table.not_unwrapped().next().is_some() {
            RefreshOutcome::Partial
        } else {
            RefreshOutcome::Changed
        };
        let snapshot = Snapshot::new(table, current.as_deref(), self.shared.clock.now());
        let lost = snapshot.lost().to_vec();
        if lost.is_empty() {
            self.confirm(&snapshot.table, read_at);
        }
        self.keyring.publish(snapshot);
        if lost.is_empty() {
            Ok(outcome)
        } else {
            Err(Rejection::LostVersion(lost).into())
        }
    }

    /// Renews the lease if the manifest was read from the location, unless an older version
    /// encrypts because no KEK unwraps the primary: that must end at some point (I11).
    fn confirm(&self, table: &KeyTable, read_at: Option<Timestamp>) {
        if let Some(read_at) = read_at
            && table.has_unwrapped_primary(self.shared.clock.now())
        {
            self.keyring.confirm(table, read_at);
        }
    }

    /// Publishes the cached manifest before the location is read for the first time. Even if its
    /// keys can't be unwrapped yet, only its successors are accepted from the location.
    async fn start_from_cache(&mut self) {
        let Some(cache) = &self.cache else { return };
        let loaded = match cache.load().await {
            Ok(None) => return,
            Ok(Some((bytes, confirmed))) => match parse(bytes).await {
                Ok(document) => {
                    let document = Arc::new(document);
                    examine(None, Arc::clone(&document), self.keyring.trust())
                        .await
                        .map(|_| (document, confirmed))
                        .map_err(|rejection| rejection.to_string())
                }
                Err(error) => Err(error.to_string()),
            },
            Err(reason) => Err(reason),
        };
        match loaded {
            Ok((document, confirmed)) => {
                // A clock that was ahead must not extend the lease.
                let confirmed = confirmed.min(self.shared.clock.now());
                if let Some(cache) = &mut self.cache {
                    cache.loaded(document.bytes().clone(), confirmed);
                }
                self.cached = Some(Arc::clone(&document));
                let trigger = Trigger::CachedManifest;
                let result = self.apply(document, Some(confirmed), trigger).await;
                self.finish(trigger, result);
            }
            Err(reason) => warn!(
                keyring = %self.keyring.name(), file = %cache.path(),
                "ignoring the cached manifest: {reason}"
            ),
        }
    }

    /// Writes the active manifest, and when it was last confirmed, to the cache.
    async fn update_cache(&mut self) {
        let Some(cache) = &mut self.cache else { return };
        let Some(snapshot) = self.keyring.snapshot().clone() else {
            return;
        };
        let confirmed = self.keyring.confirmed_at().unwrap_or(Timestamp::UNIX_EPOCH);
        if let Some(reason) = cache
            .store(snapshot.table.document().bytes(), confirmed)
            .await
        {
            warn!(
                keyring = %self.keyring.name(),
                "can't cache the manifest; a restart fails while the location is down: {reason}"
            );
        }
    }

    fn changed(&self) -> ChangeCallback {
        // Weak, because the watch is owned by the keyring's task and must not keep it alive.
        let keyring = Arc::downgrade(&self.keyring);
        Arc::new(move || {
            if let Some(keyring) = keyring.upgrade() {
                keyring.request(Trigger::File);
            }
        })
    }
}

/// Examines a manifest; a large one on a blocking thread, because each version has a signature.
async fn examine(
    base: Option<Arc<Document>>,
    candidate: Arc<Document>,
    trust: Arc<Trust>,
) -> Result<Succession, Rejection> {
    let is_large = candidate.bytes().len() > LARGE;
    let examine = move || keyring::examine(base.as_deref(), &candidate, &trust.expectations);
    if is_large {
        files::run_blocking(examine).await
    } else {
        examine()
    }
}

async fn parse(bytes: Bytes) -> Result<Document, ManifestError> {
    if bytes.len() > LARGE {
        files::run_blocking(move || Document::parse(bytes)).await
    } else {
        Document::parse(bytes)
    }
}
