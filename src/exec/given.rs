//! What the program has, and what is ready for the next one: made ready while the first still runs, so that it is not ended in vain.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    ExecError, Plan,
    folder::{Folder, FolderError},
    program::environment,
    values::Values,
};
use crate::model::SecretName;

/// How long files that could not be written are left alone, at first and at most.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

pub(super) struct Given {
    folder: Option<Folder>,
    /// What the program was given.
    values: Arc<Values>,
    /// What stands ready: its files are written.
    next: Option<Arc<Values>>,
    /// When files that could not be written are tried again.
    again: Option<Instant>,
    pause: Duration,
}

impl Given {
    /// The first values, in files already.
    pub(super) fn new(
        plan: &Plan,
        folder: Option<Folder>,
        values: Arc<Values>,
    ) -> Result<Self, FolderError> {
        let mut given = Self {
            folder,
            values: Arc::clone(&values),
            next: None,
            again: None,
            pause: SHORTEST_PAUSE,
        };
        given.prepare(plan, values)?;
        given.take_effect()?;
        Ok(given)
    }

    pub(super) fn values(&self) -> &Values {
        &self.values
    }

    pub(super) fn folder(&self) -> Option<&Path> {
        self.folder.as_ref().map(Folder::path)
    }

    pub(super) fn changed(&self, values: &Values) -> BTreeSet<SecretName> {
        self.values.changed(values)
    }

    /// When [`prepare`](Self::prepare) is worth another try; never if it didn't fail.
    pub(super) fn again(&self) -> Option<Instant> {
        self.again
    }

    /// Makes values ready for a program that is started with them. If it fails, what was ready before still is.
    pub(super) fn prepare_start(
        &mut self,
        plan: &Plan,
        values: Arc<Values>,
    ) -> Result<(), ExecError> {
        self.again = None;
        environment(plan, &values, self.folder())?;
        Ok(self.prepare(plan, values)?)
    }

    /// The same for a program that runs, whose environment can't change.
    pub(super) fn prepare(&mut self, plan: &Plan, values: Arc<Values>) -> Result<(), FolderError> {
        self.again = None;
        let files = plan
            .bindings
            .files
            .iter()
            .map(|file| (file.name.as_str(), values.of(&file.piece)));
        let written = self
            .folder
            .as_mut()
            .map_or(Ok(()), |folder| folder.prepare(files));
        self.unless_failed(written)?;
        self.next = Some(values);
        Ok(())
    }

    /// Puts into force what is ready, if anything is. If it fails, what the program has stays as it is.
    pub(super) fn take_effect(&mut self) -> Result<(), FolderError> {
        let Some(next) = self.next.take() else {
            return Ok(());
        };
        let exchanged = self.folder.as_mut().map_or(Ok(()), Folder::exchange);
        self.unless_failed(exchanged)?;
        self.values = next;
        self.pause = SHORTEST_PAUSE;
        Ok(())
    }

    /// Nothing is to be tried again: the secrets are what the program has.
    pub(super) fn is_up_to_date(&mut self) {
        (self.again, self.pause) = (None, SHORTEST_PAUSE);
    }

    fn unless_failed(&mut self, result: Result<(), FolderError>) -> Result<(), FolderError> {
        if result.is_err() {
            self.again = Some(Instant::now() + self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        result
    }
}
