//! The task that keeps a secret fresh.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Secret, Trigger, VersionSelector,
    expiry::Expiry,
    lease::{ActiveLease, RetiredLeases},
    publish,
    rollback::RollbackCheck,
};
use crate::{
    backend::{self, BackendError, ErrorKind, FetchOutcome, FetchedValue, HeldValue},
    clock::Uptime,
    files::{ChangeCallback, WatchGuard},
    schedule::{FAR_FUTURE, Schedule, settle},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// The shortest pause between two renewals, however short a lease is.
const MIN_RENEWAL_PAUSE: Duration = Duration::from_millis(250);

pub(super) struct Refresher {
    secret: Arc<Secret>,
    requests: mpsc::Receiver<Trigger>,
    watch: Option<WatchGuard>,
    schedule: Schedule,
    /// When the next read for a caller may start.
    on_demand_allowed: Instant,
    lease: Option<ActiveLease>,
    retired: RetiredLeases,
    expiry: Option<Expiry>,
    rollback: RollbackCheck,
    /// Whether the provider last said that there is no such secret.
    is_missing: bool,
    /// Whether the current value is from another source, which the config named before.
    is_inherited: bool,
}

enum ReadOutcome {
    Unchanged,
    Value(FetchedValue),
}

impl Refresher {
    pub(super) fn new(secret: Arc<Secret>, requests: mpsc::Receiver<Trigger>) -> Self {
        let schedule = Schedule::start(FIRST_BACKOFF, secret.shared.max_backoff);
        Self {
            is_inherited: secret.state().is_some(),
            secret,
            requests,
            watch: None,
            schedule,
            on_demand_allowed: Instant::now(),
            lease: None,
            retired: RetiredLeases::default(),
            expiry: None,
            rollback: RollbackCheck::default(),
            is_missing: false,
        }
    }

    pub(super) async fn run(mut self) {
        let stopping = self.secret.stopping.clone();
        while let Some(trigger) = stopping.run_until_cancelled(self.next()).await {
            let revokes_leases = self.secret.cache().revoke;
            // Boxed, because most tasks are waiting and should not reserve memory for a read.
            let refresh = Box::pin(self.refresh(trigger));
            if revokes_leases {
                // Not cancelled: it has a time limit, and a lease that it obtains must be revoked.
                refresh.await;
            } else if stopping.run_until_cancelled(refresh).await.is_none() {
                return;
            }
        }
        if self.secret.cache().revoke {
            Box::pin(self.retired.revoke_all(&self.secret, self.lease)).await;
        }
    }

    /// Waits until a read is due. Meanwhile, drops values that are no longer served and revokes
    /// their leases.
    async fn next(&mut self) -> Trigger {
        // Callers can send any number of requests. The provider is asked at a bounded rate, and
        // requests that arrive in the meantime share a read.
        let mut is_requested = false;
        let first = loop {
            let (retirement, on_demand_allowed) = (self.next_retirement(), self.on_demand_allowed);
            tokio::select! {
                Some(trigger) = self.requests.recv() => match trigger {
                    Trigger::OnDemand => is_requested = self.secret.is_read_wanted(),
                    trigger => break trigger,
                },
                trigger = self.schedule.elapsed() => break trigger,
                () = sleep_until(on_demand_allowed), if is_requested => break Trigger::OnDemand,
                // Boxed like a read.
                // Late by the time for which the machine sleeps; `Trigger::Clock` ends the wait.
                () = sleep(retirement) => Box::pin(self.retire()).await,
            }
        };
        settle(first).await;
        while self.requests.try_recv().is_ok() {}
        first
    }

    /// Returns how long to wait until a former value is no longer served, or its lease is revoked.
    fn next_retirement(&self) -> Duration {
        let state = self.secret.state();
        let previous = state
            .as_ref()
            .and_then(|state| state.previous.as_ref())
            .map(|previous| previous.until);
        self.retired
            .next_due()
            .into_iter()
            .chain(previous)
            .min()
            .map_or(FAR_FUTURE, |due| due.since(self.uptime()))
    }

    async fn retire(&mut self) {
        publish::drop_expired_previous(&self.secret);
        self.retired.revoke_due(&self.secret).await;
    }

    async fn refresh(&mut self, trigger: Trigger) {
        self.secret.begin_read();
        self.arm_watch().await;
        let result = self.read().await;
        let label = match &result {
            Ok(ReadOutcome::Unchanged) => "unchanged",
            Ok(ReadOutcome::Value(_)) => "changed",
            Err(error) => error.kind.secret_code(),
        };
        let is_success = result.is_ok();
        match result {
            Ok(ReadOutcome::Unchanged) => {
                self.is_missing = false;
                publish::confirmation(&self.secret, self.lease_end());
            }
            Ok(ReadOutcome::Value(fetched)) => self.install(fetched, trigger),
            Err(error) => self.fail(&error, trigger),
        }
        // Only now: the first value gives a name covered by a wildcard a series of its own.
        self.secret.count_fetch(trigger, label);
        self.schedule_next(is_success);
        self.on_demand_allowed = Instant::now() + self.secret.shared.settings.force_interval;
        self.secret.sweep_other_versions();
        self.secret.end_read();
    }

    /// Called before each read, so that no change is missed between the two.
    async fn arm_watch(&mut self) {
        // Weak, because the watch is owned by the secret's task and must not keep it alive.
        let secret = Arc::downgrade(&self.secret);
        let changed: ChangeCallback = Arc::new(move || {
            if let Some(secret) = secret.upgrade() {
                secret.request(Trigger::File);
            }
        });
        let limit = self.secret.shared.read_timeout;
        let watch = self.secret.provider.watch(self.watch.take(), changed);
        // If the source hangs, so does the read that follows, which reports it.
        self.watch = backend::within(limit, watch).await.unwrap_or(None);
    }

    async fn read(&mut self) -> Result<ReadOutcome, BackendError> {
        let secret = Arc::clone(&self.secret);
        let (shared, source) = (&secret.shared, secret.source());
        let is_new = !secret.has_series();
        let Ok(_permit) = shared.reads(source, is_new).acquire_owned().await else {
            unreachable!("this semaphore is never closed")
        };
        let rotate_after = secret.cache().rotate_after;
        let is_due = self
            .expiry
            .is_some_and(|expiry| expiry.is_due(self.uptime(), rotate_after));
        // Credentials are renewed even if they are due to be replaced: they stay in use until the
        // new ones arrive, and for some time after.
        if let Some(lease) = &mut self.lease {
            let renewed = lease.renew(&secret).await;
            // If the lease can't be kept, new credentials may still be available.
            if !is_due && !lease.is_near_end(secret.shared.clock.uptime()) {
                return renewed.map(|()| ReadOutcome::Unchanged);
            }
        }
        // What another source called by some version says nothing about this one.
        let state = secret.state().filter(|_| !self.is_inherited);
        let current = state.as_ref().and_then(|state| state.current.as_ref());
        let held = current.map(|current| HeldValue {
            version: current.value.version(),
            bytes: current.value.bytes(),
        });
        let limit = shared.read_timeout;
        let fetch =
            secret
                .provider
                .fetch(&VersionSelector::Current, held, shared.settings.value_bytes);
        let fetched = match backend::within(limit, fetch).await {
            Ok(Ok(FetchOutcome::Unchanged)) => return Ok(ReadOutcome::Unchanged),
            Ok(Ok(FetchOutcome::Value(fetched))) => fetched,
            Ok(Err(error)) => return Err(error),
            Err(late) => return Err(super::timed_out(source, late)),
        };
        let is_same = held
            .is_some_and(|held| held.version == fetched.version && *held.bytes == **fetched.bytes);
        if is_same && fetched.lease.is_none() {
            let created_at = fetched.created_at.or(current.map(|current| current.since));
            self.expiry = self.expiry_of(fetched.expires_at, created_at);
            return Ok(ReadOutcome::Unchanged);
        }
        self.rollback.check(source, held, &fetched)?;
        Ok(ReadOutcome::Value(fetched))
    }

    fn install(&mut self, fetched: FetchedValue, trigger: Trigger) {
        let now = self.uptime();
        let policy = self.secret.cache();
        (self.is_missing, self.is_inherited) = (false, false);
        let mut previous_until = now + policy.previous_ttl.min(FAR_FUTURE);
        if let Some(old) = self.lease.take() {
            previous_until = previous_until.min(old.end);
            if policy.revoke && old.end > now {
                self.retired.push(previous_until, old.lease);
            }
        }
        let created_at = fetched.created_at.filter(|_| fetched.lease.is_none());
        self.expiry = self.expiry_of(fetched.expires_at, created_at);
        self.lease = fetched
            .lease
            .clone()
            .and_then(|lease| ActiveLease::new(lease, now));
        publish::value(
            &self.secret,
            fetched,
            previous_until,
            self.lease_end(),
            trigger,
        );
    }

    fn fail(&mut self, error: &BackendError, trigger: Trigger) {
        let has_value = self
            .secret
            .state()
            .is_some_and(|state| state.current.is_some());
        let is_missing =
            error.kind == ErrorKind::NotFound && self.lease.is_none() && !self.is_inherited;
        // A file that is being replaced, or a provider that is being restored, may lack the secret
        // for a moment. It counts as deleted when it is missing twice.
        let is_deleted = is_missing && self.is_missing && has_value;
        self.is_missing = is_missing;
        if is_deleted {
            self.expiry = None;
        }
        publish::failure(&self.secret, error, is_deleted, self.lease_end(), trigger);
    }

    fn uptime(&self) -> Uptime {
        self.secret.shared.clock.uptime()
    }

    fn lease_end(&self) -> Option<Uptime> {
        self.lease.as_ref().map(|lease| lease.end)
    }

    fn expiry_of(
        &self,
        expires_at: Option<Timestamp>,
        created_at: Option<Timestamp>,
    ) -> Option<Expiry> {
        Expiry::of(
            self.expiry,
            &self.secret.shared.clock,
            expires_at,
            created_at,
            self.secret.cache().rotate_after,
        )
    }

    fn schedule_next(&mut self, is_success: bool) {
        let policy = self.secret.cache();
        if !is_success {
            self.schedule.failed();
            if !self.secret.has_series() {
                // A name that never had a value is read again only when a caller asks for it.
                self.schedule.suspend();
            }
            return;
        }
        self.schedule.succeeded(policy.refresh);
        let now = self.uptime();
        if let Some(lease) = &self.lease {
            // Between half and two thirds of what is left.
            let share = 0.5 + fastrand::f64() / 6.0;
            let pause = lease.remaining(now).mul_f64(share).max(MIN_RENEWAL_PAUSE);
            self.schedule
                .wake_by(Instant::now() + pause, Trigger::Lease);
        }
        if let Some(expiry) = &self.expiry {
            for wait in expiry.wake_ups(now, policy.rotate_after) {
                self.schedule.wake_by(Instant::now() + wait, Trigger::Lease);
            }
        }
    }
}
