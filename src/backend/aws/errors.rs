//! What the errors of the AWS SDK mean.

use aws_sdk_kms::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

use crate::backend::{ErrorKind, error::Failure};

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
    let text = DisplayErrorContext(error).to_string();
    if text.contains("MissingRegion") || text.contains("region must be set") {
        let message = "no region is configured; set `aws.region` or AWS_REGION, or use an ARN";
        Failure::new(ErrorKind::Misconfigured, message)
    } else if text.contains("redentials") {
        let message = format!("no AWS credentials: {}", one_line(&text));
        Failure::new(ErrorKind::Denied, message)
    } else {
        Failure::new(ErrorKind::Unavailable, one_line(&text))
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
