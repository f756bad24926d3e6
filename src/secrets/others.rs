//! Values that are neither the current one nor the one before it in memory: read when somebody wants them, kept for a while.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until, timeout},
};

use tracing::{debug, warn};

use super::{Refused, Secret, Served, Stage, Trigger, Value};
use crate::backend::{self, Answer, Held, SecretError, SecretFault, Which};

/// How many are kept.
const KEPT: usize = 8;
/// How long a value is kept whose name may come to mean another one.
const BRIEFLY: Duration = Duration::from_secs(30);

/// The lock is held while one caller reads, so that many cause one read.
#[derive(Default)]
pub(super) struct Others(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    entries: BTreeMap<Which, Entry>,
    /// When the last read ended.
    last: Option<Instant>,
}

struct Entry {
    /// The current value when it was read: after a rotation, `previous` means another one.
    beside: String,
    result: Result<Read, SecretError>,
    until: Instant,
}

#[derive(Clone)]
struct Read {
    value: Arc<Value>,
    at: Timestamp,
    read: Instant,
}

impl Others {
    pub(super) async fn get(
        &self,
        secret: &Arc<Secret>,
        which: &Which,
        current: &Served,
        stage: Stage,
    ) -> Result<Served, Refused> {
        let source = &secret.settings.source;
        // Callers may name versions without end; the provider is asked at a bounded rate.
        let crowded = |_| {
            let message = format!("{source}: too many other versions are asked for");
            Refused::Provider(SecretError::new(SecretFault::Throttled, message))
        };
        let mut kept = timeout(secret.shared.read_timeout, self.0.lock()).await.map_err(crowded)?;
        let Kept { entries, last } = &mut *kept;
        let beside = current.value.version();
        let former = entries.remove(which).filter(|entry| entry.beside == beside);
        if let Some(entry) = former.as_ref().filter(|entry| Instant::now() < entry.until) {
            let result = entry.result.clone();
            entries.extend(former.map(|entry| (which.clone(), entry)));
            return served(result, stage, None);
        }
        if let Some(last) = *last {
            sleep_until(last + secret.shared.settings.force_interval).await;
        }
        let result = fetch(secret, which, current).await;
        let now = Instant::now();
        *last = Some(now);
        let (result, stale) = match (result, former.and_then(|entry| entry.result.ok())) {
            // It was good a while ago.
            (Err(error), Some(read))
                if error.fault != SecretFault::NotFound && read.read.elapsed() <= secret.settings.keeping.stale_if_error =>
            {
                let age = read.read.elapsed();
                (Ok(read), Some(age))
            }
            (result, _) => (result, None),
        };
        let ttl = match (&result, which) {
            (Err(_), _) => secret.shared.settings.miss_ttl,
            (Ok(_), _) if stale.is_some() => secret.shared.settings.miss_ttl,
            (Ok(_), Which::Version(_)) => secret.settings.keeping.refresh,
            (Ok(_), _) => secret.settings.keeping.refresh.min(BRIEFLY),
        };
        if entries.len() >= KEPT {
            entries.retain(|_, entry| now < entry.until);
        }
        if entries.len() >= KEPT
            && let Some(soonest) = entries.iter().min_by_key(|(_, entry)| entry.until).map(|(which, _)| which.clone())
        {
            entries.remove(&soonest);
        }
        let entry = Entry { beside: beside.to_owned(), result: result.clone(), until: now + ttl };
        entries.insert(which.clone(), entry);
        served(result, stage, stale)
    }
}

impl Others {
    /// Forgets what was read beside another current value than this one, and the one before it once its time is over.
    pub(super) fn sweep(&self, current: Option<&str>, has_rotated_lately: bool) {
        // While somebody reads, the next time will do.
        let Ok(mut kept) = self.0.try_lock() else { return };
        kept.entries
            .retain(|which, entry| Some(entry.beside.as_str()) == current && (has_rotated_lately || *which != Which::Previous));
    }
}

fn served(result: Result<Read, SecretError>, stage: Stage, stale: Option<Duration>) -> Result<Served, Refused> {
    match result {
        Ok(Read { value, at, .. }) => Ok(Served { value, stage, fetched_at: at, stale, answer: None }),
        Err(error) => Err(Refused::Provider(error)),
    }
}

/// On the control plane: whoever asked may go away, and his thread has requests to answer.
async fn fetch(secret: &Arc<Secret>, which: &Which, current: &Served) -> Result<Read, SecretError> {
    let (secret, which, current) = (Arc::clone(secret), which.clone(), Arc::clone(&current.value));
    let shared = Arc::clone(&secret.shared);
    let read = async move {
        let limit = secret.shared.read_timeout;
        let held = Some(Held { version: current.version(), bytes: current.bytes() });
        let answer = secret.provider.fetch(&which, held, secret.shared.settings.value_bytes);
        let source = &secret.settings.source;
        let result = match backend::within(limit, answer).await {
            Ok(Ok(Answer::Value(fetched))) => Ok(secret.adopt(fetched)),
            Ok(Ok(Answer::Unchanged)) => {
                Err(SecretError::new(SecretFault::Unavailable, format!("{source}: the provider gave no value")))
            }
            Ok(Err(error)) => Err(error),
            Err(late) => Err(super::late(source, limit, late)),
        };
        let label = result.as_ref().map_or_else(|error: &SecretError| error.fault.as_str(), |_| "ok");
        secret.meters.fetched(&secret.shared.registry, Trigger::Demand, label);
        if let Err(error) = &result {
            // At a bounded rate, as the reads are. That there is no such value is the caller's affair.
            match error.fault {
                SecretFault::NotFound => debug!(secret = %secret.name(), ?which, "{error}"),
                _ => warn!(secret = %secret.name(), ?which, fault = error.fault.as_str(), "{error}"),
            }
        }
        result.map(|value| Read { value, at: secret.shared.clock.now(), read: Instant::now() })
    };
    match shared.control.spawn(read).await {
        Ok(result) => result,
        Err(error) => Err(SecretError::new(SecretFault::Unavailable, format!("reading it was given up: {error}"))),
    }
}
