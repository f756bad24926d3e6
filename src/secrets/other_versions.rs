//! Values other than the current one and the previous one in memory. They are read on demand and
//! cached for a while.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, warn};

use super::{GetError, Secret, Served, Stage, Trigger, Value, VersionSelector};
use crate::{
    backend::{self, BackendError, ErrorKind, FetchOutcome, HeldValue},
    clock::Uptime,
};

/// How many values are cached.
const MAX_CACHED: usize = 8;
/// How many reads can be pending.
const MAX_PENDING: usize = 16;
/// How long a value is cached under a name (`previous`, `pending`) that can come to mean another.
const NAMED_TTL: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct OtherVersions {
    entries: Mutex<BTreeMap<VersionSelector, Entry>>,
    /// When the last read ended. Locked during a read: callers can name any number of versions, so
    /// the provider is asked for one at a time, at a bounded rate.
    turn: tokio::sync::Mutex<Option<Instant>>,
}

/// What is known of one value.
struct Entry {
    /// The version that was current when the value was requested. After a rotation, `previous`
    /// means another value.
    beside: String,
    /// The value that was read last.
    value: Option<Arc<Value>>,
    /// Why the last read failed, and since when reads have been failing.
    failure: Option<(BackendError, Uptime)>,
    /// Until when no other read is needed.
    until: Uptime,
    /// Set while a read is pending; its sender is dropped at the end.
    reading: Option<watch::Receiver<()>>,
}

impl Entry {
    fn serve(&self, secret: &Secret, stage: Stage) -> Result<Served, GetError> {
        let now = secret.shared.clock.uptime();
        let stale = self.failure.as_ref().map(|(_, since)| now.since(*since));
        match (&self.value, &self.failure) {
            (Some(value), None) => Ok(Served::new(value, stage, None)),
            (Some(value), Some((error, _)))
                if error.kind != ErrorKind::NotFound
                    && stale.is_some_and(|age| age <= secret.cache().stale_if_error) =>
            {
                Ok(Served::new(value, stage, stale))
            }
            (_, Some((error, _))) => Err(GetError::Provider(error.clone())),
            (None, None) => Err(GetError::Provider(BackendError::new(
                ErrorKind::Unavailable,
                secret.source(),
                "the value is still being read",
            ))),
        }
    }
}

/// How a request is served.
enum Lookup {
    Cached(Box<Result<Served, GetError>>),
    /// By a read that is pending.
    Reading(watch::Receiver<()>),
    TooManyReads,
}

impl OtherVersions {
    pub(super) async fn get(
        &self,
        secret: &Arc<Secret>,
        selector: &VersionSelector,
        current: &Served,
        stage: Stage,
    ) -> Result<Served, GetError> {
        let mut reading = match self.look_up(secret, selector, &current.value, stage) {
            Lookup::Cached(result) => return *result,
            Lookup::Reading(reading) => reading,
            Lookup::TooManyReads => return Err(too_many_reads(secret)),
        };
        // Fails when the sender is dropped, which marks the end of the read.
        let _ = timeout(secret.shared.read_timeout, reading.changed()).await;
        match self.lock().get(selector) {
            Some(entry)
                if entry.beside == current.value.version()
                    && (entry.reading.is_none() || entry.value.is_some()) =>
            {
                entry.serve(secret, stage)
            }
            _ => Err(too_many_reads(secret)),
        }
    }

    /// Finds the value in the cache, or joins the read of it, which starts now unless one is
    /// pending.
    fn look_up(
        &self,
        secret: &Arc<Secret>,
        selector: &VersionSelector,
        current: &Arc<Value>,
        stage: Stage,
    ) -> Lookup {
        let mut entries = self.lock();
        let now = secret.shared.clock.uptime();
        let beside = current.version();
        if let Some(entry) = entries.get(selector).filter(|entry| entry.beside == beside) {
            if let Some(reading) = &entry.reading {
                return Lookup::Reading(reading.clone());
            }
            if now < entry.until {
                return Lookup::Cached(Box::new(entry.serve(secret, stage)));
            }
        }
        let is_reading = |entry: &&Entry| entry.reading.is_some();
        if entries.values().filter(is_reading).count() >= MAX_PENDING {
            return Lookup::TooManyReads;
        }
        let former = entries
            .remove(selector)
            .filter(|entry| entry.beside == beside);
        make_room(&mut entries, now);
        let (done, reading) = watch::channel(());
        let (value, failure) = former.map_or((None, None), |entry| (entry.value, entry.failure));
        let entry = Entry {
            beside: beside.to_owned(),
            value,
            failure,
            until: now,
            reading: Some(reading.clone()),
        };
        entries.insert(selector.clone(), entry);
        drop(entries);
        let (secret, selector, current) =
            (Arc::clone(secret), selector.clone(), Arc::clone(current));
        let control = secret.shared.control.clone();
        // A task of its own on the control plane: the caller may go away while others wait for the
        // same read.
        control.spawn(async move {
            let stopping = secret.stopping.clone();
            stopping
                .run_until_cancelled(read(&secret, &selector, &current))
                .await;
            drop(done);
        });
        Lookup::Reading(reading)
    }

    /// Drops values that were read while a version other than `current` was the current one, and
    /// the previous value once it has expired.
    pub(super) fn sweep(&self, current: Option<&str>, has_rotated_recently: bool) {
        let is_needed = |selector: &VersionSelector, entry: &Entry| {
            Some(entry.beside.as_str()) == current
                && (has_rotated_recently || *selector != VersionSelector::Previous)
        };
        self.lock()
            .retain(|selector, entry| entry.reading.is_some() || is_needed(selector, entry));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VersionSelector, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_many_reads(secret: &Secret) -> GetError {
    GetError::Provider(BackendError::new(
        ErrorKind::Throttled,
        secret.source(),
        "too many concurrent requests for other versions",
    ))
}

/// If the cache is full, drops all expired entries or else the one that expires first. Entries with
/// a pending read stay.
fn make_room(entries: &mut BTreeMap<VersionSelector, Entry>, now: Uptime) {
    let idle = |entries: &BTreeMap<VersionSelector, Entry>| {
        entries
            .values()
            .filter(|entry| entry.reading.is_none())
            .count()
    };
    if idle(entries) >= MAX_CACHED {
        entries.retain(|_, entry| entry.reading.is_some() || now < entry.until);
    }
    if idle(entries) >= MAX_CACHED {
        let oldest = entries
            .iter()
            .filter(|(_, entry)| entry.reading.is_none())
            .min_by_key(|(_, entry)| entry.until);
        if let Some(selector) = oldest.map(|(selector, _)| selector.clone()) {
            entries.remove(&selector);
        }
    }
}

/// Waits for its turn, reads a value and caches the result.
async fn read(secret: &Arc<Secret>, selector: &VersionSelector, current: &Arc<Value>) {
    let other_versions = &secret.other_versions;
    let mut turn = other_versions.turn.lock().await;
    if let Some(last) = *turn {
        sleep_until(last + secret.shared.settings.force_interval).await;
    }
    let result = fetch(secret, selector, current).await;
    *turn = Some(Instant::now());
    drop(turn);
    let now = secret.shared.clock.uptime();
    let refresh = secret.cache().refresh;
    let mut entries = other_versions.lock();
    let Some(entry) = entries
        .get_mut(selector)
        .filter(|entry| entry.beside == current.version())
    else {
        return;
    };
    entry.reading = None;
    match result {
        Ok(value) => {
            entry.value = Some(value);
            entry.failure = None;
            let ttl = match selector {
                VersionSelector::Version(_) => refresh,
                _ => refresh.min(NAMED_TTL),
            };
            entry.until = now + ttl;
        }
        Err(error) => {
            let since = entry.failure.take().map_or(now, |(_, since)| since);
            entry.failure = Some((error, since));
            entry.until = now + secret.shared.settings.miss_ttl;
        }
    }
}

async fn fetch(
    secret: &Arc<Secret>,
    selector: &VersionSelector,
    current: &Value,
) -> Result<Arc<Value>, BackendError> {
    let (shared, source) = (&secret.shared, secret.source());
    let limit = shared.read_timeout;
    let held = Some(HeldValue {
        version: current.version(),
        bytes: current.bytes(),
    });
    let fetch = secret
        .provider
        .fetch(selector, held, shared.settings.value_bytes);
    let result = match backend::within(limit, fetch).await {
        Ok(Ok(FetchOutcome::Value(fetched))) => Ok(secret.adopt(fetched)),
        Ok(Ok(FetchOutcome::Unchanged)) => Err(BackendError::new(
            ErrorKind::Unavailable,
            source,
            "the provider returned no value",
        )),
        Ok(Err(error)) => Err(error),
        Err(late) => Err(super::timed_out(source, late)),
    };
    let label = result
        .as_ref()
        .map_or_else(|error: &BackendError| error.kind.secret_code(), |_| "ok");
    secret.count_fetch(Trigger::OnDemand, label);
    if let Err(error) = &result {
        // Logged at a bounded rate, because reads are. A missing version concerns the caller only.
        match error.kind {
            ErrorKind::NotFound => {
                debug!(secret = %secret.name(), which = ?selector, "{error}");
            }
            fault => {
                warn!(
                    secret = %secret.name(), which = ?selector, fault = fault.secret_code(),
                    "{error}"
                );
            }
        }
    }
    result
}
