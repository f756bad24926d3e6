//! What the audit log is told of requests that were refused.

use crate::http::problem::Code;
use crate::{
    audit::{Recorder, Refusal, Who},
    model::{KeyringName, Operation, SecretName},
    policy::Caller,
};

/// What was asked for.
#[derive(Clone, Copy)]
pub(crate) enum Of<'a> {
    /// Nothing that is served.
    Nothing,
    /// An operation on a keyring.
    Keyring(&'a KeyringName, Operation),
    /// A secret; none that is configured, if there is no name.
    Secret(Option<&'a SecretName>),
}

/// Counts a refusal by policy, token or the state of a key; other failures aren't refusals.
pub(crate) fn note(
    recorder: &Recorder,
    caller: &Caller,
    of: Of<'_>,
    code: Code,
    version: Option<u32>,
) {
    if !matches!(
        code,
        Code::Forbidden | Code::Unauthorized | Code::KeyVersionDisabled | Code::KeyVersionDestroyed
    ) {
        return;
    }
    let (who, pid) = match *caller {
        _ if code == Code::Unauthorized => (Who::Stranger, None),
        Caller::Process { uid, gid, pid } => (Who::Process { uid, gid }, pid),
        Caller::TokenHolder => (Who::TokenHolder, None),
    };
    let (keyring, secret, operation) = match of {
        Of::Nothing => (None, None, None),
        Of::Keyring(keyring, operation) => (Some(keyring.clone()), None, Some(operation.as_str())),
        Of::Secret(secret) => (None, secret.cloned(), Some("fetch")),
    };
    recorder.refused(
        Refusal {
            code: code.as_str(),
            keyring,
            secret,
            operation,
            version,
            who,
        },
        pid,
    );
}
