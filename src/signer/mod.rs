//! The only part of a rollout that opens data keys and writes manifests. It takes the change that a
//! rollout orders, checks what it can check itself, and makes it at most once.

mod authorization;
mod backup;
mod evidence;
mod proofs;

use std::collections::BTreeMap;

use jiff::Timestamp;

use self::authorization::check_authorization;
use crate::{
    admin::{Admin, AdminError, require_unasked},
    backend::ErrorKind,
    fleet::{Fleet, FleetClient},
    keyring::{self, Document, Refusal, WaveSelector},
    rollout::{Authorization, NamedVersion, State, Write, WriteFailure, Written},
};

/// Makes the changes of rollouts of one keyring.
pub struct Signer {
    admin: Admin,
    fleet: Fleet,
    client: FleetClient,
}

impl Signer {
    /// Creates a signer. `fleet` is asked for evidence and proofs.
    ///
    /// # Errors
    /// A TLS file can't be used.
    pub fn new(admin: Admin, fleet: Fleet) -> Result<Self, AdminError> {
        let client = FleetClient::new(&fleet).map_err(AdminError::System)?;
        Ok(Self {
            admin,
            fleet,
            client,
        })
    }

    /// Access to the keyring.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// The sidecars.
    pub fn fleet(&self) -> &FleetClient {
        &self.client
    }

    /// Makes a change of a rollout. If the manifest shows that it was made before, that counts.
    ///
    /// # Errors
    /// [`WriteFailure`]: nothing was changed, or the location didn't say whether it was; the next
    /// try finds out.
    pub async fn write(&self, state: &State, write: &Write) -> Result<Written, WriteFailure> {
        let made = match write {
            Write::BackUp(to) => backup::back_up(&self.admin, state, to).await,
            Write::End => self.end(state).await,
            Write::RollBack { former, version } => self.roll_back(state, former, *version).await,
            _ => self.advance(state, write).await,
        };
        let document = match made {
            Ok(document) => document,
            Err(error) => self.made_before(state, write, error).await?,
        };
        Ok(written(state, write, &document))
    }

    /// Makes a change under the mark of the present step.
    async fn advance(&self, state: &State, write: &Write) -> Result<Document, AdminError> {
        let mark = &state.mark();
        let admin = &self.admin;
        let current = admin.read_trusted().await?;
        let made = current.manifest().rollout.as_ref();
        if made.is_some_and(|made| state.was_made(made, write)) {
            return Ok(current);
        }
        match write {
            Write::Generate { keks, preempts } => {
                if *preempts {
                    self.end_others(state).await?;
                }
                let (document, _) = admin.rotate_in_rollout(keks, mark).await?;
                Ok(document)
            }
            Write::Adopt { .. } => {
                // Only marks the manifest. Versions leave only as tombstones, and the activation
                // requires that this one is enabled.
                admin
                    .change_in_rollout(mark, |current, now| Ok(keyring::touch(current, now)))
                    .await
            }
            Write::Activate { version, wave } => {
                admin
                    .change_in_rollout(mark, |current, now| {
                        keyring::activate(current, *version, wave.clone(), None, now)
                    })
                    .await
            }
            Write::Replace {
                compromised,
                version,
            } => {
                // It ends the rollout: nothing may follow on which a person could still decide.
                admin
                    .change(|current, now| {
                        keyring::require_last_rollout(current.manifest(), state.id)?;
                        keyring::replace_compromised(current, *compromised, *version, now)
                    })
                    .await
            }
            Write::Disable {
                version,
                authorization,
            } => {
                let evidence = evidence::of_disuse(&self.admin, &self.fleet, *version).await?;
                admin.require_clock().await?;
                admin
                    .change_in_rollout(mark, |current, now| {
                        authorize(state, authorization.as_deref(), "disable", current, now)?;
                        keyring::disable(current, *version, &evidence, now)
                    })
                    .await
            }
            Write::Destroy {
                version,
                authorization,
            } => {
                authorize(
                    state,
                    authorization.as_deref(),
                    "destroy",
                    &current,
                    admin.now(),
                )?;
                let manifest = current.manifest();
                require_unasked(&self.fleet, manifest, *version, admin.now()).await?;
                admin.destroy_in_rollout(*version, None, mark).await
            }
            Write::BackUp(_) | Write::End | Write::RollBack { .. } => {
                unreachable!("made without a mark")
            }
        }
    }

    /// Gives every wave its former primary. If the rollout has ended, decisions that were made
    /// since are left alone.
    async fn roll_back(
        &self,
        state: &State,
        former: &BTreeMap<WaveSelector, u32>,
        version: Option<u32>,
    ) -> Result<Document, AdminError> {
        let current = self.admin.read_trusted().await?;
        let manifest = current.manifest();
        let is_active = manifest.rollout.as_ref().map(|mark| mark.id) == Some(state.id);
        if is_active {
            return self.admin.roll_back(state.id, former).await;
        }
        let present = keyring::primaries(&manifest.activations, self.admin.now());
        let mut is_back = true;
        for (wave, primary) in present {
            let before = former.get(&wave).or(former.get(&WaveSelector::Every));
            is_back &= primary.as_ref() == before;
            if primary.as_ref() != before && primary != version {
                return Err(Refusal::DecidedSince { wave }.into());
            }
        }
        if is_back {
            return Ok(current);
        }
        self.admin.roll_back(state.id, former).await
    }

    /// Removes the rollout's mark. If it was never written, nothing changes.
    async fn end(&self, state: &State) -> Result<Document, AdminError> {
        match self.admin.end_rollout(state.id).await {
            Err(AdminError::Refused(Refusal::NoSuchRollout(_) | Refusal::RolloutEnded(_))) => {
                self.admin.read_trusted().await
            }
            result => result,
        }
    }

    /// Ends another rollout that is active.
    async fn end_others(&self, state: &State) -> Result<(), AdminError> {
        let current = self.admin.read_trusted().await?;
        match &current.manifest().rollout {
            Some(mark) if mark.id != state.id => self.admin.end_rollout(mark.id).await.map(drop),
            _ => Ok(()),
        }
    }

    /// Returns the present manifest if it shows that a change was made before.
    async fn made_before(
        &self,
        state: &State,
        write: &Write,
        error: AdminError,
    ) -> Result<Document, WriteFailure> {
        let mark = state.mark();
        let is_done = match &error {
            AdminError::Refused(Refusal::RolloutStepDone { step, attempt, .. }) => {
                (*step, *attempt) == (mark.step, mark.attempt)
            }
            // A replacement ends its rollout.
            AdminError::Refused(Refusal::RolloutEnded(_)) => matches!(write, Write::Replace { .. }),
            _ => false,
        };
        if !is_done {
            return Err(failure(error));
        }
        self.admin.read_trusted().await.map_err(failure)
    }
}

/// Refuses a step that needs approvals without them.
fn authorize(
    state: &State,
    authorization: Option<&Authorization>,
    action: &str,
    current: &Document,
    now: Timestamp,
) -> Result<(), Refusal> {
    check_authorization(state, authorization, action, current, now).map_err(Refusal::NotApproved)
}

fn written(state: &State, write: &Write, document: &Document) -> Written {
    let manifest = document.manifest();
    let version = match write {
        Write::Generate { .. } => Some(manifest.newest_version()),
        Write::Adopt { version } => Some(*version),
        _ => state.version.as_ref().map(|version| version.version),
    };
    let named = version.and_then(|number| manifest.version(number));
    Written {
        generation: manifest.generation,
        sha256: document.digest(),
        version: named.map(|found| NamedVersion {
            version: found.version,
            key: found.key.clone(),
        }),
    }
}

/// Decides what an error means for the rollout.
fn failure(error: AdminError) -> WriteFailure {
    let reason = error.to_string();
    match error {
        AdminError::Refused(Refusal::TooEarly { from, .. }) => {
            WriteFailure::TooEarly { from, reason }
        }
        AdminError::Refused(Refusal::EvidenceMissing { .. } | Refusal::StillAskedFor { .. }) => {
            WriteFailure::NoEvidence(reason)
        }
        AdminError::Refused(Refusal::NotApproved(_)) => WriteFailure::NotApproved(reason),
        AdminError::Refused(
            Refusal::OtherRollout { .. }
            | Refusal::OtherPlan(_)
            | Refusal::RolloutEnded(_)
            | Refusal::RolloutStepDone { .. }
            | Refusal::NoSuchRollout(_),
        ) => WriteFailure::Preempted(reason),
        AdminError::Backend(error) => match error.kind {
            ErrorKind::Unavailable | ErrorKind::Throttled | ErrorKind::Conflict => {
                WriteFailure::Unavailable(reason)
            }
            _ => WriteFailure::Refused(reason),
        },
        // KEKs that are down; they are named. The fleet tells the time once it answers.
        AdminError::NotUnwrapped(_) | AdminError::BackupIncomplete(_) | AdminError::NoClock => {
            WriteFailure::Unavailable(reason)
        }
        _ => WriteFailure::Refused(reason),
    }
}
