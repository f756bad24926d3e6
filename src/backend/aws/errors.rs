//! What the errors of the AWS SDK mean.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

use crate::backend::{
    ErrorKind,
    error::{Failure, causes, with_causes},
};

/// An error's text is cut after this many characters.
const MAX_TEXT: usize = 400;

/// Explains the error of any service's operation.
pub(super) fn explain<E>(error: &SdkError<E>) -> Failure
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    if let SdkError::ServiceError(response) = error {
        return explain_service_error(response.err());
    }
    let text = one_line(&with_causes(error));
    if let Some(error) = causes(error).find_map(|cause| cause.downcast_ref()) {
        let kind = kind_of_credentials_error(error);
        return Failure::new(kind, format!("no AWS credentials: {text}"));
    }
    // The kinds of some errors are only in what they print for debugging.
    let details = DisplayErrorContext(error).to_string();
    if details.contains("MissingRegion") || details.contains("region must be set") {
        let message = "no region is configured; set `aws.region` or AWS_REGION, or use an ARN";
        Failure::new(ErrorKind::Misconfigured, message)
    } else {
        Failure::new(ErrorKind::Unavailable, text)
    }
}

/// An outage where credentials come from is not a refusal.
fn kind_of_credentials_error(error: &CredentialsError) -> ErrorKind {
    match error {
        CredentialsError::ProviderTimedOut(_) => ErrorKind::Unavailable,
        CredentialsError::InvalidConfiguration(_) => ErrorKind::Misconfigured,
        CredentialsError::ProviderError(_) if format!("{error:?}").contains("ConnectorError") => {
            ErrorKind::Unavailable
        }
        _ => ErrorKind::Denied,
    }
}

/// Explains an error response.
pub(super) fn explain_service_error(error: &impl ProvideErrorMetadata) -> Failure {
    explain_code(
        error.code().unwrap_or("an error without a code"),
        error.message().unwrap_or_default(),
    )
}

/// Explains an error code and its message.
pub(super) fn explain_code(code: &str, message: &str) -> Failure {
    let text = if message.is_empty() {
        format!("AWS responded with {code}")
    } else {
        format!("AWS responded with {code}: {message}")
    };
    let kind = match code {
        // The secret can still be restored.
        "InvalidRequestException"
            if message.contains("marked for deletion") || message.contains("marked deleted") =>
        {
            ErrorKind::NotFound
        }
        _ => kind_of(code),
    };
    Failure::new(kind, one_line(&text))
}

fn kind_of(code: &str) -> ErrorKind {
    match code {
        "DisabledException" | "KMSInvalidStateException" => ErrorKind::Disabled,
        "AccessDeniedException"
        | "AccessDenied"
        | "Forbidden"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "InvalidAccessKeyId"
        | "ExpiredTokenException"
        | "ExpiredToken"
        | "MissingAuthenticationToken" => ErrorKind::Denied,
        "NotFoundException"
        | "ResourceNotFoundException"
        | "NoSuchKey"
        | "NoSuchBucket"
        | "ParameterNotFound"
        | "ParameterVersionNotFound" => ErrorKind::NotFound,
        "IncorrectKeyException" | "InvalidCiphertextException" => ErrorKind::Rejected,
        "InvalidKeyUsageException"
        | "ValidationException"
        | "UnsupportedOperationException"
        | "InvalidArnException"
        | "InvalidParameterException"
        | "InvalidKeyId" => ErrorKind::Misconfigured,
        "ThrottlingException"
        | "Throttling"
        | "LimitExceededException"
        | "RequestLimitExceeded"
        | "TooManyRequestsException"
        | "SlowDown" => ErrorKind::Throttled,
        _ => ErrorKind::Unavailable,
    }
}

/// Returns the text on one line of limited length.
fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(MAX_TEXT) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aws_sdk_kms::{error::ConnectorError, operation::decrypt::DecryptError};

    use super::*;

    fn kind(error: CredentialsError) -> ErrorKind {
        let error = ConnectorError::other(error.into(), None);
        explain(&SdkError::<DecryptError>::dispatch_failure(error)).kind
    }

    #[test]
    fn an_outage_where_credentials_come_from_is_not_a_refusal() {
        let unreachable = ConnectorError::io("no such host".into());
        let unreachable = SdkError::<DecryptError>::dispatch_failure(unreachable);
        for outage in [
            CredentialsError::provider_error(unreachable),
            CredentialsError::provider_timed_out(Duration::from_secs(5)),
        ] {
            assert_eq!(kind(outage), ErrorKind::Unavailable);
        }
        for refusal in [
            CredentialsError::not_loaded("nowhere"),
            CredentialsError::provider_error("the role may not be assumed"),
        ] {
            assert_eq!(kind(refusal), ErrorKind::Denied);
        }
    }
}
