//! Values that are neither the current one nor the one before it in memory: read when somebody wants them, kept for a while.

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

use super::{Refused, Secret, Served, Stage, Trigger, Value};
use crate::backend::{self, Answer, Held, SecretError, SecretFault, Which};

/// How many are kept.
const KEPT: usize = 8;
/// How many may wait for their turn to be read.
const WAITING: usize = 16;
/// How long a value is kept whose name may come to mean another one.
const BRIEFLY: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Others {
    entries: Mutex<BTreeMap<Which, Entry>>,
    /// When the last read ended. Held while one value is read: callers may name versions without end, and the provider is asked for one
    /// at a time, at a bounded rate.
    turn: tokio::sync::Mutex<Option<Instant>>,
}

/// What is known of one value.
struct Entry {
    /// The current value when it was asked for: after a rotation, `previous` means another one.
    beside: String,
    /// What was read last.
    value: Option<Arc<Value>>,
    /// Why there is nothing newer, and since when.
    failure: Option<(SecretError, Instant)>,
    /// Until when this will do.
    until: Instant,
    /// Tells when it has been read; there while that goes on.
    reading: Option<watch::Receiver<()>>,
}

impl Entry {
    fn answer(&self, stage: Stage, bound: Duration) -> Result<Served, Refused> {
        let stale = self.failure.as_ref().map(|(_, since)| since.elapsed());
        match (&self.value, &self.failure) {
            (Some(value), None) => Ok(Served::other(value, stage, None)),
            // It was good a while ago.
            (Some(value), Some((error, _)))
                if error.fault != SecretFault::NotFound
                    && stale.is_some_and(|age| age <= bound) =>
            {
                Ok(Served::other(value, stage, stale))
            }
            (_, Some((error, _))) => Err(Refused::Provider(error.clone())),
            (None, None) => Err(Refused::Provider(SecretError::new(
                SecretFault::Unavailable,
                "it is being read",
            ))),
        }
    }
}

impl Others {
    pub(super) async fn get(
        &self,
        secret: &Arc<Secret>,
        which: &Which,
        current: &Served,
        stage: Stage,
    ) -> Result<Served, Refused> {
        let bound = secret.settings.keeping.stale_if_error;
        let mut read = match self.look(secret, which, &current.value, stage) {
            Look::Kept(answer) => return *answer,
            Look::Read(read) => read,
            Look::Crowded => return Err(crowded(secret)),
        };
        // Its end is told by the sender's, too.
        let _ = timeout(secret.shared.read_timeout, read.changed()).await;
        match self.lock().get(which) {
            Some(entry)
                if entry.beside == current.value.version()
                    && (entry.reading.is_none() || entry.value.is_some()) =>
            {
                entry.answer(stage, bound)
            }
            _ => Err(crowded(secret)),
        }
    }

    /// What is kept, or a read of it, which begins now if none is under way.
    fn look(
        &self,
        secret: &Arc<Secret>,
        which: &Which,
        current: &Arc<Value>,
        stage: Stage,
    ) -> Look {
        let mut entries = self.lock();
        let now = Instant::now();
        let beside = current.version();
        if let Some(entry) = entries.get(which).filter(|entry| entry.beside == beside) {
            if let Some(reading) = &entry.reading {
                return Look::Read(reading.clone());
            }
            if now < entry.until {
                return Look::Kept(Box::new(
                    entry.answer(stage, secret.settings.keeping.stale_if_error),
                ));
            }
        }
        if entries
            .values()
            .filter(|entry| entry.reading.is_some())
            .count()
            >= WAITING
        {
            return Look::Crowded;
        }
        let former = entries.remove(which).filter(|entry| entry.beside == beside);
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
        entries.insert(which.clone(), entry);
        drop(entries);
        let (secret, which, current) = (Arc::clone(secret), which.clone(), Arc::clone(current));
        let control = secret.shared.control.clone();
        // On the control plane and by itself: whoever asked may go away, and others wait for the same.
        control.spawn(async move {
            let ending = secret.ending.clone();
            ending
                .run_until_cancelled(read(&secret, &which, &current))
                .await;
            drop(done);
        });
        Look::Read(reading)
    }

    /// Forgets what was read beside another current value than this one, and the one before it once its time is over.
    pub(super) fn sweep(&self, current: Option<&str>, has_rotated_lately: bool) {
        let is_wanted = |which: &Which, entry: &Entry| {
            Some(entry.beside.as_str()) == current
                && (has_rotated_lately || *which != Which::Previous)
        };
        self.lock()
            .retain(|which, entry| entry.reading.is_some() || is_wanted(which, entry));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Which, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stands there for a caller.
enum Look {
    Kept(Box<Result<Served, Refused>>),
    Read(watch::Receiver<()>),
    Crowded,
}

fn crowded(secret: &Secret) -> Refused {
    let message = format!(
        "{}: too many other versions are asked for",
        secret.settings.source
    );
    Refused::Provider(SecretError::new(SecretFault::Throttled, message))
}

/// Drops the entry that is the first to be read anew anyway, if there are too many; never one that is being read.
fn make_room(entries: &mut BTreeMap<Which, Entry>, now: Instant) {
    let idle = |entries: &BTreeMap<Which, Entry>| {
        entries
            .values()
            .filter(|entry| entry.reading.is_none())
            .count()
    };
    if idle(entries) >= KEPT {
        entries.retain(|_, entry| entry.reading.is_some() || now < entry.until);
    }
    if idle(entries) >= KEPT {
        let oldest = entries
            .iter()
            .filter(|(_, entry)| entry.reading.is_none())
            .min_by_key(|(_, entry)| entry.until);
        if let Some(which) = oldest.map(|(which, _)| which.clone()) {
            entries.remove(&which);
        }
    }
}

/// Reads a value in its turn and keeps what came of it.
async fn read(secret: &Arc<Secret>, which: &Which, current: &Arc<Value>) {
    let others = &secret.others;
    let mut turn = others.turn.lock().await;
    if let Some(last) = *turn {
        sleep_until(last + secret.shared.settings.force_interval).await;
    }
    let result = fetch(secret, which, current).await;
    let now = Instant::now();
    *turn = Some(now);
    drop(turn);
    let keeping = &secret.settings.keeping;
    let mut entries = others.lock();
    let Some(entry) = entries
        .get_mut(which)
        .filter(|entry| entry.beside == current.version())
    else {
        return;
    };
    entry.reading = None;
    match result {
        Ok(value) => {
            entry.value = Some(value);
            entry.failure = None;
            entry.until = now
                + if matches!(which, Which::Version(_)) {
                    keeping.refresh
                } else {
                    keeping.refresh.min(BRIEFLY)
                };
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
    which: &Which,
    current: &Value,
) -> Result<Arc<Value>, SecretError> {
    let (shared, source) = (&secret.shared, &secret.settings.source);
    let limit = shared.read_timeout;
    let held = Some(Held {
        version: current.version(),
        bytes: current.bytes(),
    });
    let result = match backend::within(
        limit,
        secret
            .provider
            .fetch(which, held, shared.settings.value_bytes),
    )
    .await
    {
        Ok(Ok(Answer::Value(fetched))) => Ok(secret.adopt(fetched)),
        Ok(Ok(Answer::Unchanged)) => Err(SecretError::new(
            SecretFault::Unavailable,
            format!("{source}: it gave no value"),
        )),
        Ok(Err(error)) => Err(error),
        Err(late) => Err(super::late(source, limit, late)),
    };
    let label = result
        .as_ref()
        .map_or_else(|error: &SecretError| error.fault.as_str(), |_| "ok");
    secret.fetched(Trigger::OnDemand, label);
    if let Err(error) = &result {
        // At a bounded rate, as the reads are. That there is no such value is the caller's affair.
        match error.fault {
            SecretFault::NotFound => debug!(secret = %secret.name(), ?which, "{error}"),
            _ => warn!(secret = %secret.name(), ?which, fault = error.fault.as_str(), "{error}"),
        }
    }
    result
}
