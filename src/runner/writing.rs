//! Writing the journal, as its runner or not at all.

use super::{JournalError, Record, RunError, Runner, Stored, requests::LISTEN};
use crate::{
    backend::ErrorKind,
    rollout::{Action, Event, State, step},
};

impl Runner {
    pub(super) fn require_own(&self, stored: &Stored) -> Result<(), RunError> {
        match &stored.record.runner {
            Some(runner) if !runner.is_same_process(&self.own) => Err(RunError::Taken {
                rollout: stored.record.state.id,
                runner: runner.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Takes an event and stores the next state, before anything is done.
    pub(super) async fn take(
        &mut self,
        state: State,
        event: Event,
    ) -> Result<Vec<Action>, RunError> {
        let (next, actions) = step(state, event, self.clock.now());
        let Some(stored) = &self.stored else {
            return Ok(actions);
        };
        let mut record = stored.record.clone();
        record.state = next;
        self.replace(record).await?;
        Ok(actions)
    }

    /// Leaves the journal to the next runner. Requests that were not taken are void, unless this
    /// process takes them later, or leaves the rollout unfinished. That the journal can't be
    /// written doesn't change how the rollout ended.
    pub(super) async fn leave(&mut self) {
        let Some(stored) = self.stored.take() else {
            return;
        };
        let keeps_requests = self.requesters.is_some() || self.stop.is_cancelled();
        let left_behind = |record: &Record| {
            let mut left = record.clone();
            left.runner = None;
            if !keeps_requests {
                left.requests.clear();
            }
            left
        };
        let mut record = left_behind(&stored.record);
        let left = match self.journal.replace(Some(stored), record.clone()).await {
            // A request came meanwhile.
            Err(JournalError::Backend(error)) if error.kind == ErrorKind::Conflict => {
                match self.journal.read().await {
                    Ok(Some(latest)) if self.require_own(&latest).is_ok() => {
                        record.requests = left_behind(&latest.record).requests;
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
    /// is done meanwhile, unless this machine keeps the state.
    pub(super) async fn replace(&mut self, mut record: Record) -> Result<(), RunError> {
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
                kind if kind.is_temporary() && self.stop.is_cancelled() => {
                    return Err(RunError::Stopped);
                }
                kind if kind.is_temporary() && self.may_run_ahead() => {
                    tracing::debug!(%error, "the journal lags behind what this machine keeps");
                    self.stored = Some(Stored::ahead(self.stored.take(), record));
                    return Ok(());
                }
                kind if kind.is_temporary() => self.pause(LISTEN).await,
                _ => return Err(JournalError::from(error).into()),
            }
        }
    }

    /// Whether the rollout goes on while the place of its journal is away. A request that is being
    /// taken has to leave that place first, or it would be taken again.
    fn may_run_ahead(&self) -> bool {
        self.journal.is_kept() && self.taking.is_none() && self.stored.is_some()
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
