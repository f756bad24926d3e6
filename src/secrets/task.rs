//! The one task that keeps a secret.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use super::{
    Change, Secret, Trigger,
    secret::number,
    value::{Current, Failed, Previous, State},
};
use crate::{
    backend::{self, Answer, Changed, Fetched, Held, Lease, SecretError, SecretFault, Which},
    schedule::{FAR_FUTURE, Schedule, WatchKeeper, settle},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// How long before its end a value's successor is looked for, at most.
const LEAD: Duration = Duration::from_secs(60);
/// How long after the end of its time a static value is looked for once more.
const LAG: Duration = Duration::from_secs(1);
/// However short a lease is, no provider is asked more often for its sake.
const LEAST_PAUSE: Duration = Duration::from_millis(250);

pub(super) struct Refresher {
    secret: Arc<Secret>,
    requests: mpsc::Receiver<Trigger>,
    watch: WatchKeeper,
    /// Whether the provider's last word was that there is no such secret.
    is_missing: bool,
    schedule: Schedule,
    demand_allowed: Instant,
    lease: Option<Running>,
    /// Leases that are to be given back at their time.
    retired: Vec<(Instant, Arc<dyn Lease>)>,
    /// A version that is not believed yet.
    doubted: Option<String>,
    /// When the current value's time is over: by the clock, and when that is from here.
    end: Option<(Timestamp, Instant)>,
}

/// A lease that the current value lives by.
struct Running {
    lease: Arc<dyn Lease>,
    life: Duration,
    end: Instant,
}

impl Running {
    fn new(lease: Arc<dyn Lease>, read: Instant) -> Self {
        let life = lease.duration().min(FAR_FUTURE);
        Self {
            lease,
            life,
            end: read + life,
        }
    }

    fn remaining(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// Whether too little is left to wait any longer for more.
    fn nears_its_end(&self) -> bool {
        self.remaining() <= self.life / 3
    }
}

enum Outcome {
    Unchanged,
    Value(Fetched),
}

impl Refresher {
    pub(super) fn new(secret: Arc<Secret>, requests: mpsc::Receiver<Trigger>) -> Self {
        let schedule = Schedule::start(FIRST_BACKOFF, secret.shared.max_backoff);
        Self {
            secret,
            requests,
            watch: WatchKeeper::default(),
            is_missing: false,
            schedule,
            demand_allowed: Instant::now(),
            lease: None,
            retired: Vec::new(),
            doubted: None,
            end: None,
        }
    }

    pub(super) async fn run(mut self) {
        let ending = self.secret.ending.clone();
        let may_lease = self.secret.settings.keeping.revoke;
        while let Some(trigger) = ending.run_until_cancelled(self.next()).await {
            // In a box: a secret that waits, as most do, then takes no room for all that a read needs.
            let attempt = Box::pin(self.attempt(trigger));
            if may_lease {
                // To its end, which is bounded: what it brings has to be given back.
                attempt.await;
            } else if ending.run_until_cancelled(attempt).await.is_none() {
                return;
            }
        }
        if may_lease {
            let leases = self.retired.drain(..).map(|(_, lease)| lease);
            let leases: Vec<_> = leases
                .chain(self.lease.take().map(|running| running.lease))
                .collect();
            for lease in leases {
                Self::revoke(&self.secret, &*lease).await;
            }
        }
    }

    /// Waits until a read is due; meanwhile, drops what nobody may have any more.
    async fn next(&mut self) -> Trigger {
        // Callers may ask without end; the provider is asked at a bounded rate, and whoever comes meanwhile joins.
        let mut is_demanded = false;
        let first = loop {
            let (retirement, demand_allowed) = (self.next_retirement(), self.demand_allowed);
            tokio::select! {
                Some(trigger) = self.requests.recv() => match trigger {
                    Trigger::OnDemand => is_demanded = true,
                    trigger => break trigger,
                },
                trigger = self.schedule.elapsed() => break trigger,
                () = sleep_until(demand_allowed), if is_demanded => break Trigger::OnDemand,
                () = sleep_until(retirement) => self.retire().await,
            }
        };
        settle(first).await;
        while self.requests.try_recv().is_ok() {}
        first
    }

    fn next_retirement(&self) -> Instant {
        let state = self.secret.state();
        let previous = state
            .as_ref()
            .and_then(|state| state.previous.as_ref())
            .map(|previous| previous.until);
        let leases = self.retired.iter().map(|(at, _)| *at);
        leases
            .chain(previous)
            .min()
            .unwrap_or_else(|| Instant::now() + FAR_FUTURE)
    }

    async fn retire(&mut self) {
        let now = Instant::now();
        if let Some(state) = self.secret.state()
            && state
                .previous
                .as_ref()
                .is_some_and(|previous| previous.until <= now)
        {
            self.secret.publish(State {
                current: state.current.clone(),
                previous: None,
                failure: state.failure.clone(),
            });
            if let Some(current) = &state.current {
                let version = Some(current.value.version().to_owned());
                // Nobody may be listening.
                let _ = self.secret.shared.changes.send(Change {
                    secret: self.secret.name().clone(),
                    version,
                    previous: None,
                });
            }
        }
        // Each is forgotten only once it is given back: the end may come in between.
        while let Some((at, lease)) = self.retired.iter().find(|(at, _)| *at <= now).cloned() {
            Self::revoke(&self.secret, &*lease).await;
            self.retired
                .retain(|(other, kept)| *other != at || !Arc::ptr_eq(kept, &lease));
        }
    }

    /// Takes the secret alone: what is held over an await has to be `Sync`, and the watch's guard isn't.
    async fn revoke(secret: &Secret, lease: &dyn Lease) {
        let limit = secret.shared.read_timeout;
        let (name, source) = (secret.name(), &secret.settings.source);
        let result = match backend::within(limit, lease.revoke()).await {
            Ok(result) => result,
            Err(late) => Err(super::late(source, limit, late)),
        };
        match result {
            Ok(()) => info!(secret = %name, "a lease was given back"),
            Err(error) => {
                warn!(secret = %name, "a lease can't be given back and ends by itself: {error}")
            }
        }
    }

    async fn attempt(&mut self, trigger: Trigger) {
        self.secret.begin_attempt();
        self.keep_watch().await;
        let result = self.read().await;
        let label = match &result {
            Ok(Outcome::Unchanged) => "unchanged",
            Ok(Outcome::Value(_)) => "changed",
            Err(error) => error.fault.as_str(),
        };
        let is_good = result.is_ok();
        match result {
            Ok(Outcome::Unchanged) => self.confirm(),
            Ok(Outcome::Value(fetched)) => self.install(fetched, trigger),
            Err(error) => self.fail(error, trigger),
        }
        // After what it brought: the first value gives a name its series.
        self.secret.fetched(trigger, label);
        self.schedule(is_good);
        self.demand_allowed = Instant::now() + self.secret.shared.settings.force_interval;
        self.secret.sweep_others();
        self.secret.end_attempt();
    }

    /// Before reading, so that no change falls between the two; anew every time, because folders and links may be others than they were.
    async fn keep_watch(&mut self) {
        // Weak, or the watch would keep the secret alive that owns it.
        let secret = Arc::downgrade(&self.secret);
        let changed: Changed = Arc::new(move || {
            if let Some(secret) = secret.upgrade() {
                secret.request(Trigger::File);
            }
        });
        let (limit, source) = (
            self.secret.shared.read_timeout,
            &self.secret.settings.source,
        );
        let watch = backend::within(
            limit,
            self.secret.provider.watch(self.watch.take(), changed),
        )
        .await;
        let watch = watch.unwrap_or_else(|late| Err(super::late(source, limit, late)));
        if let Some(error) = self.watch.renew(watch) {
            let refresh = self.secret.settings.keeping.refresh;
            warn!(
                secret = %self.secret.name(), %error, ?refresh,
                "can't watch the source; changes are found by polling only"
            );
        }
    }

    async fn read(&mut self) -> Result<Outcome, SecretError> {
        let shared = Arc::clone(&self.secret.shared);
        let source = &self.secret.settings.source;
        let limit = shared.read_timeout;
        let is_new = !self.secret.has_series();
        let Ok(_turn) = shared.reads(source, is_new).acquire_owned().await else {
            unreachable!("nobody closes this semaphore")
        };
        let is_due = self
            .end
            .is_some_and(|(_, end)| Instant::now() + self.lead() >= end);
        // Credentials that are to be replaced are renewed all the same: both work for a while, and the old ones while there are no new ones.
        if let Some(running) = self.lease.as_mut() {
            let asked = Instant::now();
            match backend::within(limit, running.lease.renew()).await {
                Ok(Ok(granted)) => {
                    running.end = asked + granted.min(FAR_FUTURE);
                    if !is_due && !running.nears_its_end() {
                        return Ok(Outcome::Unchanged);
                    }
                }
                // It ended or was revoked, whatever we were promised.
                Ok(Err(error)) if error.fault == SecretFault::NotFound => {
                    info!(secret = %self.secret.name(), "the lease is gone: {error}");
                    running.end = asked;
                }
                Ok(Err(error)) if !is_due && !running.nears_its_end() => return Err(error),
                Err(late) if !is_due && !running.nears_its_end() => {
                    return Err(super::late(source, limit, late));
                }
                // New credentials may be had where the old ones can't be kept.
                Ok(Err(_)) | Err(_) => {}
            }
        }
        let state = self.secret.state();
        let current = state.as_ref().and_then(|state| state.current.as_ref());
        let held = current.map(|current| Held {
            version: current.value.version(),
            bytes: current.value.bytes(),
        });
        match backend::within(
            limit,
            self.secret
                .provider
                .fetch(&Which::Current, held, shared.settings.value_bytes),
        )
        .await
        {
            Ok(Ok(Answer::Unchanged)) => Ok(Outcome::Unchanged),
            Ok(Ok(Answer::Value(fetched))) => {
                let is_same = held.is_some_and(|held| {
                    held.version == fetched.version && *held.bytes == **fetched.bytes
                });
                if is_same && fetched.lease.is_none() {
                    self.end = self.end_of(
                        fetched.expires_at,
                        fetched.created_at.or(current.map(|current| current.since)),
                    );
                    return Ok(Outcome::Unchanged);
                }
                self.doubt(held, &fetched)?;
                Ok(Outcome::Value(fetched))
            }
            Ok(Err(error)) => Err(error),
            Err(late) => Err(super::late(source, limit, late)),
        }
    }

    /// Doubts a number that is less than the one held, once: a replica may lag behind. Read twice, it is so: a store was put back.
    ///
    /// # Errors
    /// It is doubted.
    fn doubt(&mut self, held: Option<Held<'_>>, fetched: &Fetched) -> Result<(), SecretError> {
        let numbers = held
            .and_then(|held| number(held.version))
            .zip(number(&fetched.version));
        if numbers.is_none_or(|(held, fetched)| fetched >= held)
            || self.doubted.as_ref() == Some(&fetched.version)
        {
            self.doubted = None;
            return Ok(());
        }
        self.doubted = Some(fetched.version.clone());
        let source = &self.secret.settings.source;
        let message = format!(
            "{source}: its provider gave version {} after a later one; asking once more",
            fetched.version
        );
        Err(SecretError::new(SecretFault::Unavailable, message))
    }

    /// The provider says that the current value still is the one.
    fn confirm(&mut self) {
        let Some(state) = self.secret.state() else {
            return;
        };
        self.is_missing = false;
        self.report_recovery(&state);
        let (previous, valid_until) = (
            state.previous.clone(),
            self.lease.as_ref().map(|running| running.end),
        );
        let current = state.current.clone().map(|current| Current {
            confirmed_at: self.secret.shared.clock.now(),
            valid_until,
            ..current
        });
        self.secret.publish(State {
            current,
            previous,
            failure: None,
        });
    }

    fn install(&mut self, fetched: Fetched, trigger: Trigger) {
        let (now, at) = (Instant::now(), self.secret.shared.clock.now());
        let keeping = &self.secret.settings.keeping;
        let former = self.secret.state();
        let before = former.as_ref().and_then(|state| state.current.clone());
        self.is_missing = false;
        if let Some(state) = &former {
            self.report_recovery(state);
        }

        let mut until = now + keeping.previous_ttl.min(FAR_FUTURE);
        if let Some(old) = self.lease.take() {
            until = until.min(old.end);
            if keeping.revoke && old.end > now {
                self.retired.push((until, old.lease));
            }
        }
        self.end = self.end_of(
            fetched.expires_at,
            fetched.created_at.filter(|_| fetched.lease.is_none()),
        );
        // One without a length is none: nothing could be done about its end.
        self.lease = fetched
            .lease
            .clone()
            .filter(|lease| !lease.duration().is_zero())
            .map(|lease| Running::new(lease, now));
        let previous = before
            .as_ref()
            .filter(|_| until > now)
            .map(|before| Previous {
                value: Arc::clone(&before.value),
                until,
            });
        let value = self.secret.adopt(fetched);
        let (name, version) = (self.secret.name().clone(), value.version().to_owned());
        let version_before = before
            .as_ref()
            .map(|before| before.value.version().to_owned());
        let since = value.created_at().unwrap_or(at);
        let valid_until = self.lease.as_ref().map(|running| running.end);
        let current = Current {
            value,
            since,
            confirmed_at: at,
            valid_until,
        };
        let change = Change {
            secret: name.clone(),
            version: Some(version.clone()),
            previous: previous
                .as_ref()
                .map(|previous| previous.value.version().to_owned()),
        };
        self.secret.publish(State {
            current: Some(current),
            previous,
            failure: None,
        });
        info!(secret = %name, %version, before = version_before, trigger = trigger.as_str(), "secret in force");
        self.secret.shared.audit.record("secret.in_force", |event| {
            event
                .with("secret", name.as_str())
                .with("version", version)
                .with("version_before", version_before)
        });
        // Nobody may be listening.
        let _ = self.secret.shared.changes.send(change);
    }

    fn fail(&mut self, error: SecretError, trigger: Trigger) {
        let state = self.secret.state();
        let name = self.secret.name();
        let (mut current, mut previous) = state.as_ref().map_or((None, None), |state| {
            (state.current.clone(), state.previous.clone())
        });
        if let (Some(current), Some(running)) = (&mut current, &self.lease) {
            current.valid_until = Some(running.end);
        }
        let is_missing = error.fault == SecretFault::NotFound && self.lease.is_none();
        // A file that is being replaced, and a provider that is being restored, may miss it for a moment.
        let is_deleted = is_missing && self.is_missing && current.is_some();
        self.is_missing = is_missing;
        if is_deleted {
            (current, previous) = (None, None);
        }
        let now = Instant::now();
        let before = state.as_ref().and_then(|state| state.failure.as_ref());
        let is_news = before.is_none_or(|before| before.error != error);
        // A provider's words may differ every time.
        let is_of_a_new_kind = before.is_none_or(|before| before.error.fault != error.fault);
        if is_news || is_deleted {
            let serving = current.as_ref().map(|current| current.value.version());
            let what = if is_deleted {
                "secret deleted"
            } else {
                "secret"
            };
            warn!(secret = %name, trigger = trigger.as_str(), fault = error.fault.as_str(), serving, "{what}: {error}");
        }
        let since = before.map_or(now, |before| before.since);
        let failure = Some(Failed {
            error: error.clone(),
            at: self.secret.shared.clock.now(),
            instant: now,
            since,
        });
        self.secret.publish(State {
            current,
            previous,
            failure,
        });
        if is_deleted {
            self.end = None;
            self.secret.shared.audit.record("secret.deleted", |event| {
                event.with("secret", name.as_str())
            });
            let _ = self.secret.shared.changes.send(Change {
                secret: name.clone(),
                version: None,
                previous: None,
            });
        } else if is_of_a_new_kind {
            self.secret.shared.audit.record("secret.failed", |event| {
                event
                    .with("secret", name.as_str())
                    .with("fault", error.fault.as_str())
                    .with("reason", error.to_string())
            });
        }
    }

    fn report_recovery(&self, former: &State) {
        if former.failure.is_some() && former.current.is_some() {
            info!(secret = %self.secret.name(), "reading it works again");
        }
    }

    /// When a value's time is over: its provider says so, or the age that the config knows.
    fn end_of(
        &self,
        expires_at: Option<Timestamp>,
        created_at: Option<Timestamp>,
    ) -> Option<(Timestamp, Instant)> {
        let now = self.secret.shared.clock.now();
        let rotated = self
            .secret
            .settings
            .keeping
            .rotate_after
            .and_then(|age| created_at.unwrap_or(now).checked_add(age).ok());
        let at = expires_at.into_iter().chain(rotated).min()?;
        // What is known already stays where it was, whatever was done to the clock since.
        let known = self.end.filter(|(known, _)| *known == at);
        let from_here = || {
            (
                at,
                Instant::now()
                    + Duration::try_from(at.duration_since(now))
                        .unwrap_or_default()
                        .min(FAR_FUTURE),
            )
        };
        Some(known.unwrap_or_else(from_here))
    }

    /// How long before its end a successor is looked for.
    fn lead(&self) -> Duration {
        self.secret
            .settings
            .keeping
            .rotate_after
            .map_or(LEAD, |age| (age / 10).min(LEAD))
    }

    fn schedule(&mut self, is_good: bool) {
        let now = Instant::now();
        let keeping = &self.secret.settings.keeping;
        if is_good {
            self.schedule.succeeded(keeping.refresh);
        } else {
            self.schedule.failed();
        }
        if !is_good && !self.secret.has_series() {
            // A name that leads to nothing is asked for again when somebody asks for it.
            self.schedule.suspend();
        }
        if is_good && let Some(running) = &self.lease {
            // Between half and two thirds of what is left.
            let due = now
                + running
                    .remaining()
                    .mul_f64(0.5 + fastrand::f64() / 6.0)
                    .max(LEAST_PAUSE);
            self.schedule.wake_by(due, Trigger::Lease);
        }
        if is_good && let Some((_, end)) = self.end {
            let candidates = [end.checked_sub(self.lead()), end.checked_add(LAG)];
            for due in candidates.into_iter().flatten().filter(|due| *due > now) {
                self.schedule.wake_by(due, Trigger::Lease);
            }
        }
    }
}
