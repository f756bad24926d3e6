//! What the usage ledger says about versions.

use std::time::Duration;

use super::store::Store;
use crate::{
    clock::Clock,
    crypto::KeyringId,
    http::problem::Problem,
    keyring::Class,
    ledger::{self, Question, Superseded, Verdict},
    wire::{
        Code,
        hub::{Barrier, EvidenceRequest},
    },
};

/// How long sidecars may take to answer the barrier of a question.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Answers a question, whose barrier every sidecar had the time to answer.
///
/// # Errors
/// [`Code::InvalidRequest`]: the class is unknown. [`Code::DatabaseUnavailable`]: there is no
/// answer from older data.
pub(super) async fn judge(
    store: &Store,
    request: &EvidenceRequest,
    barrier: &Barrier,
    clock: &Clock,
) -> Result<Verdict, Problem> {
    let class: Class = request.class.parse().map_err(|error| {
        let detail = format!("class: {error}");
        Problem::new(Code::InvalidRequest, detail)
    })?;
    let question = Question {
        keyring: KeyringId(request.id),
        version: request.version,
        class,
        quiet_period: request.quiet_period,
        destroy_after: request.destroy_after,
        encrypt_lease: request.encrypt_lease,
        lost_after: store.lost_after,
        superseded: Some(Superseded {
            at: request.superseded_at,
            generation: request.generation,
        }),
        barrier: ledger::Barrier {
            number: barrier.barrier,
            at: barrier.at,
        },
        workloads: store.workloads.of(&request.name),
        further_uses: Vec::new(),
        statements: Vec::new(),
    };
    let ledger = store.ledger_of(question.keyring, clock.now()).await?;
    Ok(ledger::judge(&ledger, &question))
}
