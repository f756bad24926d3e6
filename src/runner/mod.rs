//! Runs a rollout: does what the state machine orders, stores its state before, and tells it what
//! came of it.

mod journal;
mod observe;

use std::{collections::VecDeque, fs, time::Duration};

use jiff::Timestamp;
use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};
use tokio::time::sleep;

pub use self::journal::{Journal, JournalError, Record, Request, RunnerId, Stored};
use self::observe::fleet_view;
use crate::{
    admin::AdminError,
    backend::ErrorKind,
    clock::Clock,
    crypto::RolloutId,
    rollout::{
        Action, Assessment, Event, Intent, Observation, Plan, Requester, State, Strategy, assess,
        begin, step,
    },
    signer::Signer,
};

/// How often the journal is read for requests.
const LISTEN: Duration = Duration::from_secs(1);
/// How often a runner says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// After this time without a word, a runner counts as ended.
const LEASE: Duration = Duration::from_secs(45);

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
    taking: Option<Request>,
    /// Whether the journal is taken from a process that is at work.
    preempts: bool,
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
        }
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
            && self.is_alive(runner)
            && !preempts
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
    /// not.
    fn is_alive(&self, runner: &RunnerId) -> bool {
        if (&runner.host, runner.pid, runner.since)
            == (&self.own.host, self.own.pid, self.own.since)
        {
            return false;
        }
        let silence = self.clock.now().duration_since(runner.alive_at);
        let is_silent = silence.unsigned_abs() > LEASE;
        let is_gone = runner.host == self.own.host && !exists(runner.pid);
        !is_silent && !is_gone
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
        let stored = stored.ok_or_else(|| RunError::None(self.journal.place().to_string()))?;
        Ok(stored.record)
    }

    /// Asks the process that runs the rollout for something. Returns false if there is none: then
    /// this one may continue the rollout.
    ///
    /// # Errors
    /// [`RunError::None`]; the journal can't be used.
    pub async fn ask(&self, request: &Request) -> Result<bool, RunError> {
        let stored = self.journal.read().await?;
        let stored = stored.ok_or_else(|| RunError::None(self.journal.place().to_string()))?;
        if !self.is_run(&stored.record) {
            return Ok(false);
        }
        self.journal.ask(request).await?;
        Ok(true)
    }

    /// Returns whether another process runs the rollout.
    pub fn is_run(&self, record: &Record) -> bool {
        let runner = record.runner.as_ref();
        runner.is_some_and(|runner| self.is_alive(runner))
    }

    /// Begins a rollout and runs it until it ends, or halts. `watch` is
    /// called after every change of the state.
    ///
    /// # Errors
    /// [`RunError::Unfinished`] if an earlier rollout has not ended; the journal can't be written.
    pub async fn run(
        &mut self,
        plan: Plan,
        assessment: Assessment,
        watch: &mut impl FnMut(&State),
    ) -> Result<State, RunError> {
        let is_emergency = !plan.can_roll_back();
        self.preempts = is_emergency;
        let before = self.take_over(is_emergency).await?;
        if let Some(before) = &before
            && !before.phase.is_over()
            && !is_emergency
        {
            return Err(RunError::Unfinished(before.id));
        }
        let id = RolloutId::generate().map_err(AdminError::from)?;
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
        let state = self
            .take_over(false)
            .await?
            .ok_or_else(|| RunError::None(self.journal.place().to_string()))?;
        let actions = self.take(state, event).await?;
        self.drive(actions, watch).await
    }

    /// Does what is ordered until the rollout ends or halts.
    async fn drive(
        &mut self,
        actions: Vec<Action>,
        watch: &mut impl FnMut(&State),
    ) -> Result<State, RunError> {
        let mut actions = VecDeque::from(actions);
        loop {
            let Some(state) = self.state() else {
                return Err(RunError::None(self.journal.place().to_string()));
            };
            watch(&state);
            if state.phase.is_over() || state.is_halted() {
                self.leave().await;
                return Ok(state);
            }
            let event = match actions.pop_front() {
                Some(Action::Sleep { until }) => self.listen(Some(until)).await?,
                None => self.listen(None).await?,
                Some(action) => match Box::pin(self.perform(&state, action)).await {
                    Some(event) => event,
                    None => continue,
                },
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
        let fleet = fleet_view(self.signer.fleet(), &state.plan.keyring).await;
        let manifest = self.signer.admin().read_checked().await;
        Observation {
            fleet,
            manifest: manifest
                .map(|document| document.manifest().clone())
                .map_err(|error| error.to_string()),
        }
    }

    /// Waits for a request, or until a time.
    async fn listen(&mut self, until: Option<Timestamp>) -> Result<Event, RunError> {
        loop {
            if let Some(event) = self.next_request().await? {
                return Ok(event);
            }
            let now = self.clock.now();
            let left = match until {
                Some(until) if until <= now => return Ok(Event::Woken),
                Some(until) => until.duration_since(now).unsigned_abs(),
                None => LISTEN,
            };
            sleep(left.min(LISTEN)).await;
        }
    }

    /// Takes the oldest request from the journal.
    async fn next_request(&mut self) -> Result<Option<Event>, RunError> {
        let now = self.clock.now();
        let read = self.journal.read().await;
        let stored = match read {
            Ok(Some(stored)) => stored,
            // Someone moved it away; the next write creates it again.
            Ok(None) => return Ok(None),
            // Requests wait until the location answers again.
            Err(JournalError::Backend(error)) if error.kind.is_temporary() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        self.require_own(&stored)?;
        let record = stored.record.clone();
        self.stored = Some(stored);
        let Some(request) = record.requests.first().cloned() else {
            let silence = now.duration_since(self.written_at).unsigned_abs();
            if silence >= HEARTBEAT {
                self.replace(record).await?;
            }
            return Ok(None);
        };
        let is_current = request.is_current(&record.state);
        self.taking = Some(request.clone());
        if !is_current {
            // It was about a step that is over.
            self.replace(record).await?;
            return Ok(None);
        }
        Ok(Some(match request {
            Request::Asked { verb, by, .. } => Event::Asked { verb, by },
            Request::Approved(approval) => Event::Approved(approval),
        }))
    }

    fn require_own(&self, stored: &Stored) -> Result<(), RunError> {
        match &stored.record.runner {
            Some(runner)
                if (&runner.host, runner.pid, runner.since)
                    != (&self.own.host, self.own.pid, self.own.since) =>
            {
                Err(RunError::Taken {
                    rollout: stored.record.state.id,
                    runner: runner.clone(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Takes an event and stores the next state, before anything is done.
    async fn take(&mut self, state: State, event: Event) -> Result<Vec<Action>, RunError> {
        let (next, actions) = step(state, event, self.clock.now());
        let Some(stored) = &self.stored else {
            return Ok(actions);
        };
        let mut record = stored.record.clone();
        record.state = next;
        self.replace(record).await?;
        Ok(actions)
    }

    /// Leaves the journal to the next runner. Requests that were not taken are void. That
    /// it can't be written doesn't change how the rollout ended.
    async fn leave(&mut self) {
        let Some(stored) = self.stored.take() else {
            return;
        };
        let record = Record {
            runner: None,
            requests: Vec::new(),
            ..stored.record.clone()
        };
        let left = match self.journal.replace(Some(stored), record.clone()).await {
            // A request came meanwhile.
            Err(JournalError::Backend(error)) if error.kind == ErrorKind::Conflict => {
                match self.journal.read().await {
                    Ok(Some(latest)) if self.require_own(&latest).is_ok() => {
                        self.journal.replace(Some(latest), record).await.map(drop)
                    }
                    other => other.map(drop),
                }
            }
            other => other.map(drop),
        };
        if let Err(error) = left {
            tracing::warn!("the journal still names this process as its runner: {error}");
        }
    }

    /// Replaces the journal as its runner, in one write with the removal of the request that the
    /// state comes from. Requests that came meanwhile are kept. If another runner came or changed
    /// the state, this one ends. A location that is unavailable is tried until it answers: nothing
    /// is done meanwhile.
    async fn replace(&mut self, mut record: Record) -> Result<(), RunError> {
        loop {
            if let Some(stored) = &self.stored {
                record.requests.clone_from(&stored.record.requests);
            }
            if let Some(taken) = &self.taking
                && let Some(index) = record.requests.iter().position(|request| request == taken)
            {
                record.requests.remove(index);
            }
            let now = self.clock.now();
            self.own.alive_at = now;
            record.runner = Some(self.own.clone());
            let written = self
                .journal
                .replace(self.stored.clone(), record.clone())
                .await;
            let error = match written {
                Ok(stored) => {
                    self.stored = Some(stored);
                    self.written_at = now;
                    self.taking = None;
                    return Ok(());
                }
                Err(JournalError::Backend(error)) => error,
                Err(error) => return Err(error.into()),
            };
            match error.kind {
                ErrorKind::Conflict => self.read_again(&record).await?,
                kind if kind.is_temporary() => sleep(LISTEN).await,
                _ => return Err(JournalError::from(error).into()),
            }
        }
    }

    /// Reads the journal after a conflict. Others may only have added requests, or this process has
    /// written `record` and didn't learn of it.
    async fn read_again(&mut self, record: &Record) -> Result<(), RunError> {
        let latest = match self.journal.read().await {
            Err(JournalError::Backend(error)) if error.kind.is_temporary() => return Ok(()),
            latest => latest?,
        };
        if let Some(latest) = &latest
            && !self.preempts
        {
            self.require_own(latest)?;
            let known = self.stored.as_ref().map(|stored| &stored.record.state);
            let is_known = Some(&latest.record.state) == known;
            if !is_known && latest.record.state != record.state {
                return Err(RunError::Changed(latest.record.state.id));
            }
        }
        self.stored = latest;
        Ok(())
    }
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
