//! What the audit log is told of requests that were refused.

use super::problem::Code;
use crate::{
    audit::{Recorder, Refusal, Who},
    config::{KeyringName, Operation},
    policy::Caller,
};

/// Counts a refusal by policy, token or the state of a key; other failures aren't refusals.
pub(super) fn note(
    recorder: &Recorder,
    caller: &Caller,
    of: Option<(&KeyringName, Operation)>,
    code: Code,
    version: Option<u32>,
) {
    if !matches!(code, Code::Forbidden | Code::Unauthorized | Code::KeyVersionDisabled | Code::KeyVersionDestroyed) {
        return;
    }
    let (who, pid) = match *caller {
        _ if code == Code::Unauthorized => (Who::Stranger, None),
        Caller::Process { uid, gid, pid } => (Who::Process { uid, gid }, pid),
        Caller::TokenHolder => (Who::TokenHolder, None),
    };
    let (keyring, operation) = of.map(|(keyring, operation)| (keyring.clone(), operation.as_str())).unzip();
    recorder.refused(Refusal { code: code.as_str(), keyring, operation, version, who }, pid);
}
