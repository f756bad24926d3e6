//! What the errors of the Azure SDK mean.

use azure_core::{Error, error::ErrorKind as SdkErrorKind};

use super::transport::TransportError;
use crate::backend::{
    ErrorKind,
    error::{Failure, causes},
};

/// An error's text is cut after this many characters.
const MAX_TEXT: usize = 400;

/// What a request was about: `key` or `secret`, and the role that permits its use.
pub(super) struct ObjectType {
    pub(super) name: &'static str,
    pub(super) role: &'static str,
}

/// Explains an error of an operation that requires `permission`.
pub(super) fn explain(error: &Error, object: &ObjectType, permission: &str) -> Failure {
    let ObjectType { name, role } = object;
    let text = with_causes(error);
    let SdkErrorKind::HttpResponse { status, .. } = error.kind() else {
        return match error.kind() {
            SdkErrorKind::Credential => {
                // An outage on the way to the login is not a refusal.
                let transport = causes(error).find_map(|cause| cause.downcast_ref());
                let kind =
                    transport.map_or(ErrorKind::Denied, |TransportError(failure)| failure.kind);
                Failure::new(kind, format!("can't log in to Azure: {text}"))
            }
            _ => Failure::new(ErrorKind::Unavailable, text),
        };
    };
    let status = u16::from(*status);
    let (kind, advice) = match status {
        403 if text.contains("disabled") || text.contains("Disabled") => (
            ErrorKind::Disabled,
            format!("; enable the {name} or its version"),
        ),
        401 | 403 => (
            ErrorKind::Denied,
            format!(
                "; the identity needs the {name} permission {permission}, which the role \
                 `{role}` includes"
            ),
        ),
        404 => (
            ErrorKind::NotFound,
            format!("; check the name of the vault and of the {name}"),
        ),
        429 => (ErrorKind::Throttled, String::new()),
        400 | 409 | 422 => (ErrorKind::Rejected, String::new()),
        _ => (ErrorKind::Unavailable, String::new()),
    };
    Failure::new(
        kind,
        format!("Azure responded with {status}: {text}{advice}"),
    )
}

/// Returns the text of an error and its causes, on one line.
fn with_causes(error: &Error) -> String {
    crate::backend::error::with_causes(error)
        .chars()
        .take(MAX_TEXT)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_on_the_way_to_the_login_is_not_a_refusal() {
        let object = ObjectType {
            name: "secret",
            role: "Key Vault Secrets User",
        };
        let kind = |error| {
            let login = Error::with_error(SdkErrorKind::Credential, error, "no token");
            explain(&login, &object, "get").kind
        };
        let unreachable = Failure::new(ErrorKind::Unavailable, "https://login: no such host");
        let unreachable = Error::with_error(
            SdkErrorKind::Other,
            TransportError(unreachable),
            "can't send",
        );
        assert_eq!(kind(unreachable), ErrorKind::Unavailable);
        let refused = Error::with_message(SdkErrorKind::Other, "unknown client");
        assert_eq!(kind(refused), ErrorKind::Denied);
    }
}
