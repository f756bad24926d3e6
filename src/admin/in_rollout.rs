//! Changes that a rollout makes. Each is fenced by the manifest: written once, and only if it is
//! this rollout's turn.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{access::Admin, error::AdminError};
use crate::{
    crypto::RolloutId,
    keyring::{self, Document, Manifest, Refusal, RolloutMark, WaveSelector},
    model::KekUri,
};

impl Admin {
    /// Makes a change as the step `mark` of a rollout.
    ///
    /// # Errors
    /// [`AdminError`]; [`Refusal::RolloutStepDone`] if the manifest has this step already, and the
    /// other refusals of [`keyring::advance_rollout`].
    pub async fn change_in_rollout(
        &self,
        mark: &RolloutMark,
        change: impl Fn(&Document, Timestamp) -> Result<Manifest, Refusal>,
    ) -> Result<Document, AdminError> {
        self.change_at(Some(mark), change).await
    }

    /// Adds a version as the step `mark` of a rollout. `keks` is as for [`Admin::rotate`]. Returns
    /// the number of the version, which is pending.
    ///
    /// # Errors
    /// Like [`Admin::change_in_rollout`].
    pub async fn rotate_in_rollout(
        &self,
        keks: &[KekUri],
        mark: &RolloutMark,
    ) -> Result<(Document, u32), AdminError> {
        let document = self
            .retry(async || self.add_version(keks, Some(mark)).await)
            .await?;
        let version = document.manifest().newest_version();
        Ok((document, version))
    }

    /// Destroys a disabled version as the step `mark` of a rollout. `confirm` is as for
    /// [`Admin::destroy`].
    ///
    /// # Errors
    /// Like [`Admin::change_in_rollout`] and [`Admin::destroy`].
    pub async fn destroy_in_rollout(
        &self,
        version: u32,
        confirm: Option<&str>,
        mark: &RolloutMark,
    ) -> Result<Document, AdminError> {
        self.destroy_at(Some(mark), version, confirm).await
    }

    /// Ends a rollout, without another change.
    ///
    /// # Errors
    /// [`AdminError`]; the refusals of [`keyring::end_rollout`].
    pub async fn end_rollout(&self, id: RolloutId) -> Result<Document, AdminError> {
        self.change(|current, now| keyring::end_rollout(current, id, now))
            .await
    }

    /// Takes every wave back to its former primary and ends the rollout, if that is active or no
    /// other one was since.
    ///
    /// # Errors
    /// [`AdminError`]; the refusals of [`keyring::require_last_rollout`] and
    /// [`keyring::roll_back`].
    pub async fn roll_back(
        &self,
        id: RolloutId,
        former: &BTreeMap<WaveSelector, u32>,
    ) -> Result<Document, AdminError> {
        self.change(|current, now| {
            keyring::require_last_rollout(current.manifest(), id)?;
            keyring::roll_back(current, former, now)
        })
        .await
    }
}
