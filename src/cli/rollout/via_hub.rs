//! Rollouts that a signer runs: they are ordered through a hub, which keeps their state.

use std::{collections::BTreeSet, time::Duration};

use jiff::{Timestamp, ToSpan};
use tokio::time::sleep;

use super::{
    progress::{Progress, Wanted, conclude},
    target::{ViaHub, failed, person},
    verbs::not_taken,
};
use crate::{
    cli::{
        output::{CliError, Format, note, print},
        record::Completed,
    },
    crypto::{KeyringId, RolloutId, SigningKey},
    fleet::FleetClient,
    rollout::{Asked, Intent, Request, Requester, StartOrder, State, Strategy, Verb},
    runner::{Journal, JournalError, Record, Stored},
    wire::orders::OrderOutcome,
};

/// How often the hub is asked.
const LOOK: Duration = Duration::from_millis(500);
/// For how long an order is valid.
const VALID_MINUTES: i64 = 15;
/// After so many looks, a person is told that nothing happens.
const PATIENCE: u32 = 20;
/// After so many looks, a request counts as not taken.
const LONGEST_WAIT: u32 = 240;

impl ViaHub {
    /// Orders a rollout and follows it until it ends or halts.
    pub(super) async fn order(
        &self,
        strategy: Strategy,
        intent: Intent,
        key: &SigningKey,
        format: Format,
    ) -> Result<Completed, CliError> {
        let not_after = Timestamp::now().checked_add(VALID_MINUTES.minutes());
        let order = StartOrder {
            id: RolloutId::generate().map_err(failed)?,
            keyring: self.keyring.clone(),
            keyring_id: self.keyring_id().await?,
            intent,
            strategy,
            requester: Requester {
                name: person(),
                key: None,
            },
            not_after: not_after.map_err(failed)?,
        };
        let start = order.sign(key);
        let id = start.order.id;
        self.hub.submit(&start).await.map_err(failed)?;
        note(format_args!("ordered rollout {id}"));
        self.wait_until_taken(id).await?;
        let state = Box::pin(self.follow(id, format)).await?;
        conclude(&state, Wanted::Rotation)?;
        Ok(Completed::default())
    }

    /// Asks the sidecars for the id. If one lies, the signer refuses the order.
    async fn keyring_id(&self) -> Result<KeyringId, CliError> {
        let client = FleetClient::new(&self.fleet).map_err(failed)?;
        let statuses = client.statuses().await;
        let active = |status: Result<crate::wire::status::Status, String>| {
            let keyrings = status.ok()?.keyrings.into_iter();
            let mut found = keyrings.filter(|keyring| keyring.name == self.keyring);
            found.next()?.active?.id.parse().ok()
        };
        let ids: BTreeSet<KeyringId> = statuses
            .into_iter()
            .filter_map(|(_, status)| active(status))
            .collect();
        let mut ids = ids.into_iter();
        match (ids.next(), ids.next()) {
            (Some(id), None) => Ok(id),
            (None, _) => Err(CliError::failed(format!(
                "no sidecar of the fleet serves a keyring {}",
                self.keyring
            ))),
            (Some(_), Some(_)) => Err(CliError::failed(format!(
                "sidecars of the fleet serve different keyrings {}; see `fleet status`",
                self.keyring
            ))),
        }
    }

    async fn wait_until_taken(&self, id: RolloutId) -> Result<(), CliError> {
        let mut looks = 0;
        loop {
            match self.hub.outcome(id).await {
                Ok(OrderOutcome::Taken) => return Ok(()),
                Ok(outcome) => refused(outcome)?,
                Err(reason) if looks == PATIENCE => note(reason),
                Err(_) => {}
            }
            if looks == PATIENCE {
                note("no signer has taken the order yet; it is valid for 15 minutes");
            }
            looks += 1;
            sleep(LOOK).await;
        }
    }

    /// Shows what happens in a rollout. A hub that doesn't answer for a while changes nothing about
    /// it.
    async fn follow(&self, id: RolloutId, format: Format) -> Result<State, CliError> {
        let journal = self.journal();
        let mut progress = Progress::new(format, 0);
        let mut looks = 0;
        loop {
            match journal.read().await {
                Ok(stored) => {
                    if let Some(state) = stored.and_then(|stored| find(stored.record, id)) {
                        progress.show(&state);
                        if state.phase.is_over() || state.is_halted() {
                            return Ok(state);
                        }
                    } else if let Ok(outcome) = self.hub.outcome(id).await {
                        // It could not begin after all.
                        refused(outcome)?;
                    }
                    looks = 0;
                }
                Err(JournalError::Backend(error)) if error.kind.is_temporary() => {
                    looks += 1;
                    if looks == PATIENCE {
                        note(error);
                    }
                }
                Err(error) => return Err(failed(error)),
            }
            sleep(LOOK).await;
        }
    }

    /// Leaves a signed request in the hub, and waits until the signer has taken it.
    pub(super) async fn ask(
        &self,
        verb: Verb,
        key: &SigningKey,
        format: Format,
    ) -> Result<Completed, CliError> {
        let journal = self.journal();
        let before = record(&journal).await?.state;
        if let Some(refusal) = before.refusal(verb) {
            return Err(CliError::refused(format!("can't {verb}: {refusal}")));
        }
        let asked = Asked {
            rollout: before.id,
            step: before.step,
            verb,
            by: person(),
            signature: None,
        };
        let request = Request::Asked(asked.signed_by(key));
        journal.ask(&request).await.map_err(failed)?;
        let state = taken(&journal, &request).await?;
        let by = person();
        state
            .answer(&before, verb, &by)
            .map_err(|reason| CliError::refused(format!("can't {verb}: {reason}")))?;
        print(format, &state.phase, || {
            format!("the rollout {}\n", state.phase)
        })?;
        Ok(Completed::default())
    }
}

fn refused(outcome: OrderOutcome) -> Result<(), CliError> {
    match outcome {
        OrderOutcome::Refused(reason) => Err(CliError::refused(format!(
            "the signer refused the order, and nothing was changed: {reason}"
        ))),
        OrderOutcome::Waiting | OrderOutcome::Taken => Ok(()),
    }
}

fn find(record: Record, id: RolloutId) -> Option<State> {
    let mut states = std::iter::once(record.state).chain(record.earlier);
    states.find(|state| state.id == id)
}

async fn record(journal: &Journal) -> Result<Record, CliError> {
    known(journal.read().await.map_err(failed)?)
}

fn known(stored: Option<Stored>) -> Result<Record, CliError> {
    let stored = stored.ok_or_else(|| failed("there is no rollout"))?;
    Ok(stored.record)
}

/// Waits until the signer has taken a request, and returns the state then. A hub that doesn't
/// answer for a while changes nothing about it.
async fn taken(journal: &Journal, request: &Request) -> Result<State, CliError> {
    for look in 0..LONGEST_WAIT {
        match journal.read().await {
            Ok(stored) => {
                let record = known(stored)?;
                if !record.awaits(request) {
                    return Ok(record.state);
                }
            }
            Err(JournalError::Backend(error)) if error.kind.is_temporary() => {}
            Err(error) => return Err(failed(error)),
        }
        if look == PATIENCE {
            note("no signer has taken the request yet; it waits in the hub");
        }
        sleep(LOOK).await;
    }
    Err(not_taken())
}
