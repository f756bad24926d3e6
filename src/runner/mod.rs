//! Runs a rollout: does what the state machine orders, stores its state before, and tells it what
//! came of it.

mod journal;
mod kept;
mod observe;
mod requests;
#[cfg(test)]
mod tests;
mod writing;

use std::{collections::VecDeque, fs, time::Duration};

use jiff::Timestamp;
use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::observe::fleet_view;
pub use self::{
    journal::{Journal, JournalError, Record, RunnerId, Stored},
    kept::{KeptError, KeptState},
};
use crate::{
    admin::{Admin, AdminError, ask_ledger},
    clock::Clock,
    crypto::RolloutId,
    model::SignerKey,
    rollout::{
        Action, Assessment, Event, Intent, LeftRequest, Observation, Plan, Request, Requester,
        State, Strategy, assess, begin,
    },
    signer::Signer,
};

/// After this time without a word, a runner counts as ended.
pub const LEASE: Duration = Duration::from_secs(45);

/// A rollout can't be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The keyring can't be read or opened.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The journal can't be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// There is no rollout.
    #[error("{0}: there is no rollout; begin one with `rollout run`")]
    None(String),
    /// An earlier rollout has not ended.
    #[error(
        "rollout {0} has not ended, and no runner is active: continue it with `rollout resume`, or \
         end it with `rollout rollback` or `rollout abort`"
    )]
    Unfinished(RolloutId),
    /// Another process went on with the rollout.
    #[error("another process went on with rollout {0} meanwhile; see `rollout status`")]
    Changed(RolloutId),
    /// The state of the rollout comes from a place that isn't trusted with it.
    #[error(
        "rollout {0} was not run here, and what {1} says about it may not be true: restore the \
         signer's `state_dir`, or end it with `rollout abort` as an operator of the keyring"
    )]
    Untrusted(RolloutId, String),
    /// The process ends. The rollout stays where it is.
    #[error("the process was told to stop; the rollout stays where it is")]
    Stopped,
    /// Another process runs the rollout.
    #[error(
        "rollout {rollout} is run by process {} on {}, since {}, and was last heard of at {}",
        .runner.pid, .runner.host, .runner.since, .runner.alive_at
    )]
    Taken {
        /// The rollout.
        rollout: RolloutId,
        /// The process.
        runner: RunnerId,
    },
}

/// Runs rollouts of one keyring.
pub struct Runner {
    signer: Signer,
    journal: Journal,
    clock: Clock,
    /// This process.
    own: RunnerId,
    stored: Option<Stored>,
    written_at: Timestamp,
    /// The request that the next state comes from.
    taking: Option<LeftRequest>,
    /// Whether the journal is taken from a process that is at work.
    preempts: bool,
    /// Whose verbs count. None: those of everyone who can write the journal.
    requesters: Option<Vec<SignerKey>>,
    stop: CancellationToken,
}

impl Runner {
    /// Creates a runner on the machine `host`.
    pub fn new(signer: Signer, journal: Journal, host: &str, clock: Clock) -> Self {
        let now = clock.now();
        Self {
            signer,
            journal,
            own: RunnerId {
                host: host.into(),
                pid: std::process::id(),
                since: now,
                alive_at: now,
            },
            clock,
            stored: None,
            written_at: now,
            taking: None,
            preempts: false,
            requesters: None,
            stop: CancellationToken::new(),
        }
    }

    /// Runs rollouts for others: verbs count if one of `requesters` has signed them.
    #[must_use]
    pub fn for_requesters(self, requesters: Vec<SignerKey>) -> Self {
        Self {
            requesters: Some(requesters),
            ..self
        }
    }

    /// Stops between two actions when `stop` is cancelled, and leaves the rollout to the next
    /// runner.
    pub fn stop_at(&mut self, stop: CancellationToken) {
        self.stop = stop;
    }

    /// Access to the keyring.
    pub fn admin(&self) -> &Admin {
        self.signer.admin()
    }

    /// Assesses the keyring and plans a rollout. Nothing is changed.
    ///
    /// # Errors
    /// The keyring can't be read, or the manifest is not trusted.
    pub async fn plan(
        &self,
        strategy: Strategy,
        intent: Intent,
        requester: Requester,
    ) -> Result<(Assessment, Plan), RunError> {
        let admin = self.signer.admin();
        let document = Box::pin(admin.read_trusted()).await?;
        let fleet = fleet_view(self.signer.fleet(), &document.manifest().name).await;
        let now = self.clock.now();
        let assessment = assess(&document, &fleet, &strategy, &intent, now);
        let plan = Plan::new(&document, &assessment, strategy, intent, requester, now);
        Ok((assessment, plan))
    }

    /// Takes over the journal. `preempts` takes it from a process that is at work.
    ///
    /// # Errors
    /// [`RunError::Taken`]; the journal can't be read.
    async fn take_over(&mut self, preempts: bool) -> Result<Option<State>, RunError> {
        let stored = self.journal.read().await?;
        if let Some(stored) = &stored
            && let Some(runner) = &stored.record.runner
            && !preempts
            && Box::pin(self.is_alive(runner)).await?
        {
            return Err(RunError::Taken {
                rollout: stored.record.state.id,
                runner: runner.clone(),
            });
        }
        self.stored = stored;
        Ok(self
            .stored
            .as_ref()
            .map(|stored| stored.record.state.clone()))
    }

    /// Returns whether a runner may still be at work. One of this machine whose process is gone is
    /// not. One of another machine that seems to be silent may have another time: whether it is, is
    /// measured here.
    async fn is_alive(&self, runner: &RunnerId) -> Result<bool, RunError> {
        if runner.is_same_process(&self.own) {
            return Ok(false);
        }
        let is_here = runner.host == self.own.host;
        if is_here && !exists(runner.pid) {
            return Ok(false);
        }
        let silence = self.clock.now().duration_since(runner.alive_at);
        if silence.unsigned_abs() <= LEASE {
            return Ok(true);
        }
        if is_here {
            return Ok(false);
        }
        self.is_heard(runner).await
    }

    /// Waits until a runner says that it is alive, at most for [`LEASE`]. Another one that has
    /// taken its place is alive.
    async fn is_heard(&self, runner: &RunnerId) -> Result<bool, RunError> {
        let deadline = Instant::now() + LEASE;
        while Instant::now() < deadline {
            self.pause(requests::LISTEN).await;
            if self.stop.is_cancelled() {
                return Err(RunError::Stopped);
            }
            let stored = self.journal.read().await?;
            match stored.and_then(|stored| stored.record.runner) {
                Some(found) if found == *runner => {}
                Some(_) => return Ok(true),
                None => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Ends the rollout that the manifest names, for a journal that is lost. Every wave keeps its
    /// primary. Returns `None` if no rollout is active.
    ///
    /// # Errors
    /// The manifest can't be read or changed.
    pub async fn end_without_journal(&self) -> Result<Option<RolloutId>, RunError> {
        let admin = self.signer.admin();
        let current = Box::pin(admin.read_trusted()).await?;
        let Some(mark) = &current.manifest().rollout else {
            return Ok(None);
        };
        Box::pin(admin.end_rollout(mark.id)).await?;
        Ok(Some(mark.id))
    }

    /// Returns the journal's content.
    ///
    /// # Errors
    /// [`RunError::None`]; the journal can't be read.
    pub async fn record(&self) -> Result<Record, RunError> {
        let stored = self.journal.read().await?;
        let stored = stored.ok_or_else(|| RunError::None(self.journal.place().into()))?;
        Ok(stored.record)
    }

    /// Asks the process that runs the rollout for something. Returns false if there is none: then
    /// this one may continue the rollout.
    ///
    /// # Errors
    /// [`RunError::None`]; the journal can't be used.
    pub async fn ask(&self, request: &Request) -> Result<bool, RunError> {
        let stored = self.journal.read().await?;
        let stored = stored.ok_or_else(|| RunError::None(self.journal.place().into()))?;
        if !self.is_run(&stored.record).await? {
            return Ok(false);
        }
        self.journal.ask(request).await?;
        Ok(true)
    }

    /// Returns whether another process runs the rollout. If its machine seems to have another time,
    /// this takes up to 45 s.
    ///
    /// # Errors
    /// The journal can't be read.
    pub async fn is_run(&self, record: &Record) -> Result<bool, RunError> {
        match &record.runner {
            Some(runner) => Box::pin(self.is_alive(runner)).await,
            None => Ok(false),
        }
    }

    /// Begins a rollout and runs it until it ends, halts, or is stopped. `watch` is called after
    /// every change of the state.
    ///
    /// # Errors
    /// [`RunError::Unfinished`] if an earlier rollout has not ended; the journal can't be written.
    pub async fn run(
        &mut self,
        plan: Plan,
        assessment: Assessment,
        id: RolloutId,
        watch: &mut impl FnMut(&State),
    ) -> Result<State, RunError> {
        let is_emergency = !plan.can_roll_back();
        self.preempts = is_emergency;
        let before = Box::pin(self.take_over(is_emergency)).await?;
        if let Some(before) = &before
            && !before.phase.is_over()
            && !is_emergency
        {
            return Err(RunError::Unfinished(before.id));
        }
        let (state, actions) = begin(plan, assessment.findings, id, self.clock.now());
        let former = self.stored.as_ref().map(|stored| stored.record.clone());
        let record = Record::new(state, former);
        self.replace(record).await?;
        self.preempts = false;
        self.drive(actions, watch).await
    }

    /// Continues the stored rollout with an event: [`Event::Resumed`], or what a person asks for.
    ///
    /// # Errors
    /// [`RunError::None`]; [`RunError::Taken`]; the journal can't be written.
    pub async fn resume(
        &mut self,
        event: Event,
        watch: &mut impl FnMut(&State),
    ) -> Result<State, RunError> {
        let state = Box::pin(self.take_over(false))
            .await?
            .ok_or_else(|| RunError::None(self.journal.place().into()))?;
        self.require_true(&state)?;
        let actions = self.take(state, event).await?;
        self.drive(actions, watch).await
    }

    /// Continues the stored rollout if it has not ended or halted, or if a person asks for it.
    /// Returns `None` if there is nothing to do.
    ///
    /// # Errors
    /// [`RunError::Taken`], [`RunError::Untrusted`]; the journal can't be used.
    pub async fn attend(
        &mut self,
        watch: &mut impl FnMut(&State),
    ) -> Result<Option<State>, RunError> {
        // First: whether another process is at work may take a while to find out.
        let found = Box::pin(self.journal.read()).await?;
        let has_work =
            |found: Stored| !is_at_rest(&found.record.state) || !found.record.requests.is_empty();
        if !found.is_some_and(has_work) {
            return Ok(None);
        }
        let Some(state) = Box::pin(self.take_over(false)).await? else {
            return Ok(None);
        };
        let is_at_rest = is_at_rest(&state);
        self.require_true(&state)?;
        let event = if is_at_rest {
            self.next_request().await?
        } else {
            Some(Event::Resumed)
        };
        let Some(event) = event else {
            self.leave().await;
            return Ok(None);
        };
        let actions = self.take(state, event).await?;
        self.drive(actions, watch).await.map(Some)
    }

    /// Returns the state of the last rollout that was begun here, whatever the place of the journal
    /// says; `None` for a runner that trusts that place.
    ///
    /// # Errors
    /// What this machine keeps of it can't be read.
    pub fn last(&self) -> Result<Option<State>, RunError> {
        Ok(self.journal.own_state()?)
    }

    fn require_true(&self, state: &State) -> Result<(), RunError> {
        if self.journal.is_own(state)? {
            return Ok(());
        }
        Err(RunError::Untrusted(state.id, self.journal.place().into()))
    }

    /// Does what is ordered until the rollout ends or halts, or this process is to stop.
    async fn drive(
        &mut self,
        actions: Vec<Action>,
        watch: &mut impl FnMut(&State),
    ) -> Result<State, RunError> {
        let mut actions = VecDeque::from(actions);
        loop {
            let Some(state) = self.state() else {
                return Err(RunError::None(self.journal.place().into()));
            };
            watch(&state);
            if is_at_rest(&state) || self.stop.is_cancelled() {
                self.leave().await;
                return Ok(state);
            }
            let event = match actions.pop_front() {
                Some(Action::Sleep { until }) => self.listen(Some(until)).await?,
                None => self.listen(None).await?,
                Some(action) => Box::pin(self.perform(&state, action)).await,
            };
            let Some(event) = event else {
                continue;
            };
            actions = self.take(state, event).await?.into();
        }
    }

    fn state(&self) -> Option<State> {
        self.stored
            .as_ref()
            .map(|stored| stored.record.state.clone())
    }

    /// Does one thing, and returns what came of it.
    async fn perform(&self, state: &State, action: Action) -> Option<Event> {
        match action {
            Action::Write(write) => Some(match Box::pin(self.signer.write(state, &write)).await {
                Ok(written) => Event::Written(written),
                Err(failure) => Event::NotWritten(failure),
            }),
            Action::Push => {
                // A hint: sidecars that don't take it poll.
                let fleet = self.signer.fleet();
                let _ = fleet.push(&state.plan.keyring, state.generation).await;
                None
            }
            Action::Observe => Some(Event::Observed(Box::new(
                Box::pin(self.observe(state)).await,
            ))),
            Action::Prove { version, sidecars } => {
                let proofs = Box::pin(self.signer.prove(state, version, &sidecars)).await;
                Some(match proofs {
                    Ok(proofs) => Event::Proved(proofs),
                    Err(error) => {
                        let reason = format!("it can't be verified here: {error}");
                        let failed = sidecars.into_iter().map(|name| (name, Err(reason.clone())));
                        Event::Proved(failed.collect())
                    }
                })
            }
            Action::Sleep { .. } => None,
        }
    }

    /// Asks the sidecars, then reads the manifest: a sidecar that is ahead of it shows that the
    /// location went back.
    async fn observe(&self, state: &State) -> Observation {
        let client = self.signer.fleet();
        let fleet = fleet_view(client, &state.plan.keyring).await;
        let manifest = self.signer.admin().read_checked().await;
        let manifest = manifest
            .map(|document| document.manifest().clone())
            .map_err(|error| error.to_string());
        let ledger = match &manifest {
            Ok(manifest) if state.observes_disuse() || state.awaits_destruction() => {
                let replaced = state.plan.replaced.version;
                ask_ledger(client, manifest, replaced, self.clock.now()).await
            }
            _ => None,
        };
        Observation {
            fleet,
            manifest,
            ledger,
        }
    }
}

/// Returns whether nothing more happens unless a person asks for it.
fn is_at_rest(state: &State) -> bool {
    state.phase.is_over() || state.is_halted()
}

/// Returns whether a process of this machine exists. One that ended and that its parent hasn't
/// noticed yet (proc(5), states Z and X) does not. A process that can't be looked at does.
fn exists(pid: u32) -> bool {
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    if test_kill_process(id) == Err(Errno::SRCH) {
        return false;
    }
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    !state.starts_with(['Z', 'X'])
}
