//! What the errors of the Azure SDK mean.

use azure_core::{Error, error::ErrorKind as SdkErrorKind};

use crate::backend::{ErrorKind, error::Failure};

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
                Failure::new(ErrorKind::Denied, format!("can't log in to Azure: {text}"))
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
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes =
        std::iter::successors(Some(error), |error| error.source()).map(|error| error.to_string());
    let mut text = String::new();
    for cause in causes.filter(|cause| !cause.is_empty()) {
        // Some errors already contain the text of their cause.
        if !text.contains(&cause) {
            text = if text.is_empty() {
                cause
            } else {
                format!("{text}: {cause}")
            };
        }
    }
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(MAX_TEXT)
        .collect()
}
