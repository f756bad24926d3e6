//! Records denied requests in the audit log.

use crate::{
    audit::{AccessRefusal, Recorder, Requester},
    model::{KeyringName, Operation, SecretName},
    policy::Caller,
    wire::Code,
};

/// What was requested.
#[derive(Clone, Copy)]
pub(crate) enum Resource<'a> {
    /// Neither a keyring nor a secret.
    Other,
    Keyring(&'a KeyringName, Operation),
    /// A secret; without a name if it is not configured.
    Secret(Option<&'a SecretName>),
}

/// Records a request denied by the token, the policy or the state of a key version. Other failures
/// are not denials. `version` is the key version that was refused.
pub(crate) fn record(
    recorder: &Recorder,
    caller: &Caller,
    resource: Resource<'_>,
    code: Code,
    version: Option<u32>,
) {
    if !matches!(
        code,
        Code::Forbidden | Code::Unauthorized | Code::KeyVersionDisabled | Code::KeyVersionDestroyed
    ) {
        return;
    }
    let (requester, pid) = match *caller {
        _ if code == Code::Unauthorized => (Requester::Unauthorized, None),
        Caller::Process { uid, gid, pid } => (Requester::Process { uid, gid }, pid),
        Caller::TokenHolder => (Requester::TokenHolder, None),
    };
    let (keyring, secret, operation) = match resource {
        Resource::Other => (None, None, None),
        Resource::Keyring(keyring, operation) => {
            (Some(keyring.clone()), None, Some(operation.as_str()))
        }
        Resource::Secret(secret) => (None, secret.cloned(), Some("fetch")),
    };
    recorder.refused(
        AccessRefusal {
            code: code.as_str(),
            keyring,
            secret,
            operation,
            version,
            requester,
        },
        pid,
    );
}
