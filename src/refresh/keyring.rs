//! The handle of a keyring: what the request path, the ops listener and the refresh task share.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwapOption, Guard};
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};

use super::{Failure, Shared, Snapshot, Trigger, meters::KeyringMeters};
use crate::{
    config::{self, Confirm},
    keyring::KeyTable,
    model::{KeyringName, Location, Wave},
};

/// How many requests may wait for the task. One that finds no room is served by the refresh that is due anyway.
const QUEUE: usize = 1024;
/// How many missing versions are remembered at once.
const MISSES: usize = 1024;

/// A keyring that is kept fresh. Reading from it takes no lock.
pub struct Keyring {
    name: KeyringName,
    wave: Wave,
    location: Location,
    confirm: Confirm,
    snapshot: ArcSwapOption<Snapshot>,
    generations: watch::Sender<Option<u64>>,
    /// Milliseconds since the epoch; `i64::MIN` for never.
    confirmed_at: AtomicI64,
    observed_since: Timestamp,
    standing: Mutex<Standing>,
    misses: Mutex<BTreeMap<u32, Instant>>,
    miss_ttl: Duration,
    patience: Duration,
    requests: mpsc::Sender<Request>,
    pub(super) meters: KeyringMeters,
}

/// How the refreshes of a keyring went.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// When the location was last read and found good.
    pub last_success: Option<Timestamp>,
    /// The last refresh's failure, with its time; `None` once one succeeds.
    pub failure: Option<(Timestamp, Failure)>,
}

/// Asks the task to refresh.
pub(super) struct Request {
    pub(super) trigger: Trigger,
    /// Who waits for it.
    pub(super) waiter: Option<Waiter>,
}

/// Waits until it is known whether a version can be had.
pub(super) struct Waiter {
    pub(super) version: u32,
    pub(super) done: oneshot::Sender<()>,
}

impl Keyring {
    pub(super) fn new(
        settings: &config::Keyring,
        shared: &Shared,
    ) -> (Arc<Self>, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let keyring = Self {
            name: settings.name.clone(),
            wave: settings.wave.clone().unwrap_or_else(|| shared.wave.clone()),
            location: settings.location.clone(),
            confirm: settings.confirm,
            snapshot: ArcSwapOption::empty(),
            generations: watch::Sender::new(None),
            confirmed_at: AtomicI64::new(i64::MIN),
            observed_since: shared.clock.now(),
            standing: Mutex::default(),
            misses: Mutex::default(),
            miss_ttl: shared.settings.miss_ttl,
            patience: shared.settings.read_timeout,
            requests,
            meters: KeyringMeters::new(&settings.name, &shared.registry),
        };
        (Arc::new(keyring), receiver)
    }

    /// The keyring's name.
    pub fn name(&self) -> &KeyringName {
        &self.name
    }

    /// The wave that it is served for.
    pub fn wave(&self) -> &Wave {
        &self.wave
    }

    /// Where its manifest is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Since when uses of its versions are counted.
    pub fn observed_since(&self) -> Timestamp {
        self.observed_since
    }

    /// What is in force; `None` until the first refresh succeeded.
    pub fn snapshot(&self) -> Guard<Option<Arc<Snapshot>>> {
        self.snapshot.load()
    }

    /// How the refreshes go.
    pub fn standing(&self) -> Standing {
        self.standing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Asks for a refresh and doesn't wait for it.
    pub fn request(&self, trigger: Trigger) {
        // A full queue means that a refresh is due anyway, and it will read what is newest then.
        let _ = self.requests.try_send(Request {
            trigger,
            waiter: None,
        });
    }

    /// Refreshes because a ciphertext names a version that the table in force lacks, and gives what is in force
    /// then, whether it has the version or not (I2). `None`: no refresh was made, because the version was found missing lately.
    pub async fn learn(&self, version: u32) -> Option<Arc<Snapshot>> {
        self.meters.unknown_versions.increment(1);
        if self.missed_lately(version) {
            return None;
        }
        let (done, finished) = oneshot::channel();
        let waiter = Some(Waiter { version, done });
        self.requests
            .try_send(Request {
                trigger: Trigger::UnknownVersion,
                waiter,
            })
            .ok()?;
        // An error is a refresh that was not made; the snapshot tells either way.
        let _ = timeout(self.patience, finished).await;
        let newest = self.snapshot.load_full();
        if newest
            .as_ref()
            .is_none_or(|snapshot| snapshot.table.slot(version).is_none())
        {
            self.remember_miss(version);
        }
        newest
    }

    fn missed_lately(&self, version: u32) -> bool {
        let misses = self.misses.lock().unwrap_or_else(PoisonError::into_inner);
        misses
            .get(&version)
            .is_some_and(|until| Instant::now() < *until)
    }

    fn remember_miss(&self, version: u32) {
        let now = Instant::now();
        let mut misses = self.misses.lock().unwrap_or_else(PoisonError::into_inner);
        if misses.len() >= MISSES {
            misses.retain(|_, until| now < *until);
        }
        // Full of fresh ones: this one is bounded by the spacing of refreshes alone.
        if misses.len() < MISSES {
            misses.insert(version, now + self.miss_ttl);
        }
    }

    /// When the manifest was last confirmed to be the one in force.
    pub fn confirmed_at(&self) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.confirmed_at.load(Ordering::Relaxed)).ok()
    }

    /// Until when a table of this keyring may encrypt (I11).
    pub fn lease_end(&self, table: &KeyTable) -> Timestamp {
        let lease = table.manifest().policy.encrypt_lease.0;
        self.confirmed_at()
            .and_then(|confirmed| confirmed.checked_add(lease).ok())
            .unwrap_or(Timestamp::MIN)
    }

    /// Tells of every change of the generation in force; `None` until there is one.
    pub fn generations(&self) -> watch::Receiver<Option<u64>> {
        self.generations.subscribe()
    }

    pub(super) fn publish(&self, snapshot: Snapshot) {
        let generation = snapshot.table.generation();
        self.snapshot.store(Some(Arc::new(snapshot)));
        self.generations.send_replace(Some(generation));
    }

    /// Notes that the location was read at `read_at` and that `table` is what it says.
    pub(super) fn confirm(&self, table: &KeyTable, read_at: Timestamp) {
        let confirmed = match self.confirm {
            Confirm::Read => read_at,
            Confirm::Stamp => table.manifest().updated_at,
        };
        self.confirmed_at
            .store(confirmed.as_millisecond(), Ordering::Relaxed);
    }

    /// Records whether a refresh found the manifest good and what is wrong all the same, and gives what was wrong before.
    pub(super) fn record(
        &self,
        at: Timestamp,
        read: bool,
        failure: Option<Failure>,
    ) -> Option<Failure> {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if read {
            standing.last_success = Some(at);
        }
        std::mem::replace(&mut standing.failure, failure.map(|failure| (at, failure)))
            .map(|(_, failure)| failure)
    }
}
