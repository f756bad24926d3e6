//! The values that the program has, and those staged for it. Staging happens while the program
//! still runs, so that it is never stopped for values that can't be delivered.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    error::ExecError,
    folder::{Folder, FolderError},
    plan::Plan,
    program::environment,
    values::Values,
};
use crate::model::SecretName;

/// The delay before files that could not be written are tried again: initial and maximum.
const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(10);

pub(super) struct Staging {
    folder: Option<Folder>,
    current: Arc<Values>,
    /// Values whose files are written but not active yet.
    staged: Option<Arc<Values>>,
    /// When to write files again that could not be written.
    retry_at: Option<Instant>,
    pause: Duration,
}

impl Staging {
    /// Writes the files of the initial values.
    pub(super) fn new(
        plan: &Plan,
        folder: Option<Folder>,
        values: Arc<Values>,
    ) -> Result<Self, FolderError> {
        let mut staging = Self {
            folder,
            current: Arc::clone(&values),
            staged: None,
            retry_at: None,
            pause: MIN_PAUSE,
        };
        staging.stage(plan, values)?;
        staging.commit()?;
        Ok(staging)
    }

    pub(super) fn current(&self) -> &Values {
        &self.current
    }

    pub(super) fn folder(&self) -> Option<&Path> {
        self.folder.as_ref().map(Folder::path)
    }

    pub(super) fn changed(&self, values: &Values) -> BTreeSet<SecretName> {
        self.current.changed(values)
    }

    /// When to retry [`stage`](Self::stage); None if it didn't fail.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Stages values for the next start of the program. On failure, the previously staged values
    /// stay staged.
    pub(super) fn stage_for_start(
        &mut self,
        plan: &Plan,
        values: Arc<Values>,
    ) -> Result<(), ExecError> {
        self.retry_at = None;
        environment(plan, &values, self.folder())?;
        Ok(self.stage(plan, values)?)
    }

    /// Like [`stage_for_start`](Self::stage_for_start), but for a running program, whose
    /// environment can't change.
    pub(super) fn stage(&mut self, plan: &Plan, values: Arc<Values>) -> Result<(), FolderError> {
        self.retry_at = None;
        let files = plan
            .bindings
            .files
            .iter()
            .map(|file| (file.name.as_str(), values.get(&file.secret)));
        let written = self
            .folder
            .as_mut()
            .map_or(Ok(()), |folder| folder.stage(files));
        self.retry_on_error(written)?;
        self.staged = Some(values);
        Ok(())
    }

    /// Makes the staged values, if any, the current ones. On failure, the current ones stay.
    pub(super) fn commit(&mut self) -> Result<(), FolderError> {
        let Some(staged) = self.staged.take() else {
            return Ok(());
        };
        let committed = self.folder.as_mut().map_or(Ok(()), Folder::commit);
        self.retry_on_error(committed)?;
        self.current = staged;
        self.pause = MIN_PAUSE;
        Ok(())
    }

    /// Cancels retries, because the secrets have the current values again.
    pub(super) fn cancel_retry(&mut self) {
        (self.retry_at, self.pause) = (None, MIN_PAUSE);
    }

    fn retry_on_error(&mut self, result: Result<(), FolderError>) -> Result<(), FolderError> {
        if result.is_err() {
            self.retry_at = Some(Instant::now() + self.pause);
            self.pause = (self.pause * 2).min(MAX_PAUSE);
        }
        result
    }
}
