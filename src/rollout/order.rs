//! Orders and approvals: what a person signs to let a step happen.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    crypto::{KeyringId, RolloutId, SigningKey, fingerprint, verify_signature},
    encoding::to_hex,
    keyring::{Base64, WaveSelector},
    model::SignerKey,
};

/// The domain of the signatures, so that they can't be taken for others by the same key.
const DOMAIN: &[u8] = b"sidekey order v1\0";

/// Whose approvals a step needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalRule {
    /// How many different persons must approve.
    pub required: u32,
    /// Their keys (`ed25519:BASE64`). The requester's own approval doesn't count.
    pub approvers: Vec<SignerKey>,
}

impl ApprovalRule {
    pub(super) fn problems(&self) -> Vec<String> {
        let keys: BTreeSet<[u8; 32]> = self.approvers.iter().map(|key| key.0).collect();
        let mut problems = Vec::new();
        if keys.len() < self.approvers.len() {
            problems.push("approvals.approvers lists a key twice".into());
        }
        if self.required == 0 || self.required as usize > keys.len() {
            problems.push(format!(
                "approvals.required is {}, but must be between 1 and the number of approvers, {}",
                self.required,
                keys.len()
            ));
        }
        problems
    }
}

/// One step of one rollout, with everything that it depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The keyring.
    pub keyring: KeyringId,
    /// The rollout.
    pub rollout: RolloutId,
    /// SHA-256 of the plan.
    pub plan: Base64,
    /// The step, from 1.
    pub step: u32,
    /// How often the step was begun.
    pub attempt: u32,
    /// What happens: `continue`, `disable` or `destroy`.
    pub action: String,
    /// The version that it happens to.
    pub version: u32,
    /// Its succession key, which tells it from a version of the same number on another branch.
    pub key: Base64,
    /// The wave that comes next, if the action is `continue` before an activation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wave: Option<WaveSelector>,
    /// The manifest at the time of the order.
    pub base: Base,
    /// After this, the order is void.
    pub not_after: Timestamp,
    /// Who runs the rollout.
    pub requester: Requester,
}

/// A manifest that an order or plan was made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Its generation.
    pub generation: u64,
    /// Its digest.
    pub sha256: Base64,
}

/// Who runs a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requester {
    /// A name for people, such as `USER@HOST`.
    pub name: String,
    /// The key that signs the changes, if they are signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<SignerKey>,
}

/// A person's signature of an order (Ed25519, RFC 8032).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// The approver's public key.
    pub approver: SignerKey,
    /// 64 bytes.
    pub signature: Base64,
}

impl Order {
    /// The bytes that approvers sign: the domain, and the order in the canonical form of RFC 8785.
    pub fn statement(&self) -> Vec<u8> {
        let mut statement = DOMAIN.to_vec();
        match serde_json_canonicalizer::to_vec(self) {
            Ok(bytes) => statement.extend(bytes),
            Err(error) => unreachable!("an order has only strings and integers: {error}"),
        }
        statement
    }

    /// The SHA-256 of the statement in hexadecimal digits, by which people compare orders.
    pub fn digest_hex(&self) -> String {
        to_hex(&fingerprint(&self.statement()))
    }

    /// Signs the order.
    pub fn approve(&self, key: &SigningKey) -> Approval {
        Approval {
            approver: SignerKey(key.public_key()),
            signature: Base64(key.sign(&self.statement()).to_vec()),
        }
    }

    /// Returns the approvers whose signatures count: valid, listed, each once, and not the
    /// requester's. None count once the order is void.
    pub fn approvers(
        &self,
        rule: &ApprovalRule,
        approvals: &[Approval],
        now: Timestamp,
    ) -> Vec<SignerKey> {
        if now > self.not_after {
            return Vec::new();
        }
        let statement = self.statement();
        let mut counted: Vec<SignerKey> = Vec::new();
        for approval in approvals {
            let key = approval.approver;
            let is_welcome = rule.approvers.contains(&key)
                && self.requester.key != Some(key)
                && !counted.contains(&key);
            if is_welcome && verify_signature(&key.0, &statement, &approval.signature.0) {
                counted.push(key);
            }
        }
        counted
    }

    /// Returns whether the rule is satisfied.
    pub fn is_approved(&self, rule: &ApprovalRule, approvals: &[Approval], now: Timestamp) -> bool {
        self.approvers(rule, approvals, now).len() >= rule.required as usize
    }
}
