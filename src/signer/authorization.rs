//! Whether a person allowed a step: the signer checks the approvals itself.

use jiff::Timestamp;

use crate::{
    keyring::{Base64, Document},
    rollout::{Authorization, State, Step},
};

/// Checks the approvals of the present step, if the plan asks for them. The order must be about
/// exactly this step, and nothing that it names may have changed since.
///
/// # Errors
/// What is missing or differs.
pub(super) fn check_authorization(
    state: &State,
    authorization: Option<&Authorization>,
    action: &str,
    current: &Document,
    now: Timestamp,
) -> Result<(), String> {
    let is_asked_for = matches!(
        state.present(),
        Step::Disable { approval: true } | Step::Destroy { approval: true }
    );
    if !is_asked_for {
        return Ok(());
    }
    let rule = state.plan.strategy.approvals.as_ref();
    let (Some(rule), Some(Authorization { order, approvals })) = (rule, authorization) else {
        return Err("the step needs approvals, and there are none".into());
    };
    let mark = state.mark();
    let manifest = current.manifest();
    let is_about = |number| manifest.version(number).map(|found| &found.key);
    let expected = [
        (order.keyring == manifest.id, "keyring"),
        (order.rollout == state.id, "rollout"),
        (order.plan == mark.plan, "plan"),
        (
            (order.step, order.attempt) == (mark.step, mark.attempt),
            "step",
        ),
        (order.action == action, "action"),
        (order.version == state.plan.replaced.version, "version"),
        (is_about(order.version) == Some(&order.key), "key"),
        (
            descends(current, order.base.generation, &order.base.sha256),
            "base",
        ),
    ];
    if let Some((_, what)) = expected.iter().find(|(holds, _)| !holds) {
        return Err(format!("the order that was approved is for another {what}"));
    }
    let approvers = order.approvers(rule, approvals, now).len();
    if approvers < rule.required as usize {
        return Err(format!(
            "{approvers} of {} approvals are valid; an approval ends at {}",
            rule.required, order.not_after
        ));
    }
    Ok(())
}

/// Returns whether a manifest is the one that an order was made for, or descends from it.
fn descends(current: &Document, generation: u64, sha256: &Base64) -> bool {
    let manifest = current.manifest();
    let is_it = manifest.generation == generation && current.digest()[..] == sha256.0;
    let mut lineage = manifest.lineage.iter();
    is_it || lineage.any(|ancestor| ancestor.generation == generation && ancestor.sha256 == *sha256)
}
