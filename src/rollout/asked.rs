//! What people ask of a rollout through others: the verb, signed.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{machine::Verb, order::Approval, state::State};
use crate::{
    crypto::{RolloutId, SigningKey, verify_signature},
    keyring::Base64,
    model::SignerKey,
};

/// The domain of the signatures, so that they can't be taken for others by the same key.
const DOMAIN: &[u8] = b"sidekey rollout verb v1\0";

/// What a person asks a runner for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// A verb.
    Asked(Asked),
    /// An approval.
    Approved(Approval),
}

impl Request {
    /// Returns whether a request is still about what the person saw. To pause, end or roll back
    /// makes sense at any step.
    pub fn is_current(&self, state: &State) -> bool {
        match self {
            // The order says what it is for.
            Self::Approved(_) => true,
            Self::Asked(Asked {
                rollout,
                step,
                verb,
                ..
            }) => {
                let is_for_any_step = matches!(
                    verb,
                    Verb::Pause | Verb::Abort | Verb::Rollback | Verb::PromoteFull
                );
                *rollout == state.id && (is_for_any_step || *step == state.step)
            }
        }
    }
}

/// A request as it was left for a runner. Others than those who may ask can leave one, so one that
/// can't be read is passed over like one without a signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LeftRequest {
    /// One that can be read.
    Readable(Request),
    /// Anything else.
    Malformed(Value),
}

impl From<Request> for LeftRequest {
    fn from(request: Request) -> Self {
        Self::Readable(request)
    }
}

/// A verb, and the rollout as the person saw it who asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// The rollout.
    pub rollout: RolloutId,
    /// The index of the step that they saw.
    pub step: usize,
    /// The verb.
    pub verb: Verb,
    /// The person.
    pub by: String,
    /// Their signature. A process that runs rollouts for others requires it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Approval>,
}

/// What is signed.
#[derive(Serialize)]
struct Signed<'a> {
    rollout: RolloutId,
    step: usize,
    verb: Verb,
    by: &'a str,
}

impl Asked {
    /// The bytes that are signed: the domain, and everything but the signature in the canonical
    /// form of RFC 8785.
    fn statement(&self) -> Vec<u8> {
        let signed = Signed {
            rollout: self.rollout,
            step: self.step,
            verb: self.verb,
            by: &self.by,
        };
        let mut statement = DOMAIN.to_vec();
        match serde_json_canonicalizer::to_vec(&signed) {
            Ok(bytes) => statement.extend(bytes),
            Err(error) => unreachable!("it has only text and integers: {error}"),
        }
        statement
    }

    /// Signs the request.
    #[must_use]
    pub fn signed_by(self, key: &SigningKey) -> Self {
        let signature = Approval {
            approver: SignerKey(key.public_key()),
            signature: Base64(key.sign(&self.statement()).to_vec()),
        };
        Self {
            signature: Some(signature),
            ..self
        }
    }

    /// Returns whether one of `keys` has signed the request.
    pub fn is_signed_by(&self, keys: &[SignerKey]) -> bool {
        self.signature.as_ref().is_some_and(|signature| {
            let key = signature.approver;
            keys.contains(&key)
                && verify_signature(&key.0, &self.statement(), &signature.signature.0)
        })
    }
}
