//! What people ask of a rollout.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use tokio::time::sleep;

use super::{
    progress::{Progress, Wanted, conclude},
    run::interrupted,
    target::{FleetTarget, Opened, Target, failed},
};
use crate::{
    cli::{
        output::{CliError, Format, note, print},
        record::Completed,
        runtime::unless_signalled,
        target::{AccessArgs, signing_key},
    },
    rollout::{Asked, Event, Request, State, Verb},
    runner::{Journal, LEASE, RunError, Runner, RunnerId},
};

/// How often a command looks whether the runner has taken its request.
const LOOK: Duration = Duration::from_millis(200);
/// How long a runner may take for that. It looks for requests between two actions, which wait for
/// sidecars, KEKs and locations.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub(in crate::cli) struct Promote {
    #[command(flatten)]
    target: Target,
    /// End every later soak and pause, too.
    #[arg(long)]
    full: bool,
}

impl Promote {
    pub(super) async fn run(self, format: Format) -> Result<(), CliError> {
        let verb = if self.full {
            Verb::PromoteFull
        } else {
            Verb::Promote
        };
        Box::pin(self.target.ask(verb, format)).await
    }
}

impl Target {
    /// Asks the process that runs the rollout or, if there is none, continues the rollout.
    pub(super) async fn ask(self, verb: Verb, format: Format) -> Result<(), CliError> {
        let (audit, config) = (self.access.audit.clone(), self.access.config().cloned());
        let mut details = self.details();
        details.insert("verb".into(), verb.to_string().into());
        if let Some(via) = self.on.via_hub()? {
            let key = self.key_of_requester()?;
            let work = via.ask(verb, &key, format);
            let work = audit.around(config.as_ref(), "rollout.ask", details, work);
            return unless_signalled(Box::pin(work)).await;
        }
        let Opened {
            mut runner,
            requester,
        } = self.open()?;
        let work = async {
            let by = requester.name;
            let record = match runner.record().await {
                Err(RunError::None(_)) if verb == Verb::Abort => {
                    return abort_without_journal(&runner, format).await;
                }
                record => record.map_err(CliError::from_run)?,
            };
            // A rollout whose process ended goes on where it is.
            let is_run = runner.is_run(&record).await.map_err(CliError::from_run)?;
            let is_abandoned = !is_run && !record.state.phase.is_over();
            let before = record.state;
            let continues = verb == Verb::Resume && is_abandoned;
            if let Some(refusal) = before.refusal(verb).filter(|_| !continues) {
                return Err(CliError::refused(format!("can't {verb}: {refusal}")));
            }
            let request = Request::Asked(Asked {
                rollout: before.id,
                step: before.step,
                verb,
                by: by.clone(),
                signature: None,
            });
            if runner.ask(&request).await.map_err(CliError::from_run)? {
                let state = taken(&runner, &request).await?;
                state
                    .answer(&before, verb, &by)
                    .map_err(|reason| CliError::refused(format!("can't {verb}: {reason}")))?;
                print(format, &state.phase, || {
                    format!("the rollout {}\n", state.phase)
                })?;
                return Ok(Completed::default());
            }
            if verb == Verb::Pause {
                return Err(CliError::refused(
                    "no process runs the rollout, so there is nothing to pause; `rollout resume` \
                     continues it",
                ));
            }
            // Resuming a rollout whose process ended needs no decision.
            let event = match before.refusal(verb) {
                Some(_) => Event::Resumed,
                None => Event::Asked { verb, by },
            };
            let mut progress = Progress::new(format, before.entries.len());
            let state = runner
                .resume(event, &mut |state| progress.show(state))
                .await
                .map_err(CliError::from_run)?;
            drop(progress);
            let wanted = match verb {
                Verb::Rollback => Wanted::Rollback,
                Verb::Abort => Wanted::Abort,
                _ => Wanted::Rotation,
            };
            conclude(&state, wanted)?;
            Ok(Completed::default())
        };
        let work = audit.around(config.as_ref(), "rollout.ask", details, work);
        unless_signalled(Box::pin(work)).await.map_err(interrupted)
    }
}

/// Ends a rollout of which only the manifest knows.
async fn abort_without_journal(runner: &Runner, format: Format) -> Result<Completed, CliError> {
    let ended = runner
        .end_without_journal()
        .await
        .map_err(CliError::from_run)?;
    let Some(id) = ended else {
        return Err(CliError::failed("no rollout is active"));
    };
    print(format, &id, || {
        format!("rollout {id} was aborted; its journal is lost, and every wave keeps its primary\n")
    })?;
    Ok(Completed::default())
}

/// Waits until the runner has taken a request, and returns the state then.
async fn taken(runner: &Runner, request: &Request) -> Result<State, CliError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let record = runner.record().await.map_err(CliError::from_run)?;
        if !record.awaits(request) {
            return Ok(record.state);
        }
        if !runner.is_run(&record).await.map_err(CliError::from_run)? {
            return Err(CliError::failed(
                "the process that ran the rollout ended before it took the request; try again",
            ));
        }
        if Instant::now() >= deadline {
            return Err(not_taken());
        }
        sleep(LOOK).await;
    }
}

/// The outcome of a request isn't known.
pub(super) fn not_taken() -> CliError {
    CliError::failed(format!(
        "the request was not taken within {PATIENCE:?}, and still waits for the runner; see \
         `rollout status`"
    ))
}

/// Waits until an approval was taken, if a process runs the rollout. Returns whether it was.
async fn approval_taken(journal: &Journal, request: &Request) -> Result<bool, CliError> {
    let deadline = Instant::now() + PATIENCE;
    let mut heard: Option<(RunnerId, Instant)> = None;
    loop {
        let stored = journal.read().await.map_err(failed)?;
        let record = stored
            .map(|stored| stored.record)
            .ok_or_else(|| failed("there is no rollout any more"))?;
        if !record.awaits(request) {
            return Ok(true);
        }
        let Some(runner) = record.runner else {
            return Ok(false);
        };
        match &heard {
            // It has ended without a word.
            Some((last, since)) if *last == runner => {
                if since.elapsed() >= LEASE {
                    return Ok(false);
                }
            }
            _ => heard = Some((runner, Instant::now())),
        }
        if Instant::now() >= deadline {
            return Err(not_taken());
        }
        sleep(LOOK).await;
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Approve {
    #[command(flatten)]
    on: FleetTarget,
    #[command(flatten)]
    access: AccessArgs,
    /// The approver's Ed25519 key (PKCS#8 PEM).
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Approve only the order with this digest, as `rollout status` shows it.
    #[arg(long, value_name = "DIGEST")]
    order: String,
}

impl Approve {
    pub(super) async fn run(self, format: Format) -> Result<(), CliError> {
        let is_via_hub = self.on.via_hub()?.is_some();
        let journal = self.on.journal(&self.access)?;
        let stored = journal.read().await.map_err(failed)?;
        let state = stored
            .map(|stored| stored.record.state)
            .ok_or_else(|| failed("there is no rollout"))?;
        let order = state
            .order
            .as_ref()
            .ok_or_else(|| CliError::refused("no step waits for approvals"))?;
        if order.digest_hex() != self.order {
            return Err(CliError::refused(format!(
                "the order that waits is {}, which differs from --order: read `rollout status` \
                 again before you approve",
                order.digest_hex()
            )));
        }
        let approval = order.approve(&signing_key(&self.key)?);
        let is_listed = state
            .plan
            .strategy
            .approvals
            .as_ref()
            .is_some_and(|rule| rule.approvers.contains(&approval.approver));
        if !is_listed {
            return Err(CliError::refused(format!(
                "the strategy doesn't list {} as an approver",
                approval.approver
            )));
        }
        let request = Request::Approved(approval);
        journal.ask(&request).await.map_err(failed)?;
        if !approval_taken(&journal, &request).await? {
            note(if is_via_hub {
                "the approval waits for the signer"
            } else {
                "the approval waits for the process that runs the rollout (`rollout resume`)"
            });
        }
        print(format, order, || format!("approved: {}\n", order.action))
    }
}
