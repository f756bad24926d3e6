//! Lines of JSON by POST, as most collectors take them.

use std::{
    future::pending,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use hyper::{StatusCode, header::HeaderValue};
use tokio::time::timeout;

use super::deliver::{Deliver, Undelivered};
use crate::{
    backend::{Identity, Poster},
    config::AuditForward,
    files::{Allowed, BlockingPool, read_private},
};

const NDJSON: &str = "application/x-ndjson";
/// The time limit for a batch.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest value of the header, in bytes.
const MAX_AUTHORIZATION: usize = 16 << 10;

/// A collector that takes HTTP.
pub(super) struct Http {
    authorization_file: Option<PathBuf>,
    files: BlockingPool,
    poster: Poster,
}

impl Http {
    pub(super) fn new(url: &str, settings: &AuditForward) -> Self {
        let identity = Identity {
            ca_file: settings.ca_file.clone(),
            client: settings.certificate.clone(),
        };
        Self {
            authorization_file: settings.authorization_file.clone(),
            files: BlockingPool::new(1),
            poster: Poster::new(url, NDJSON, identity),
        }
    }

    async fn post(&self, body: Bytes) -> Result<StatusCode, String> {
        // Read for each batch, because tokens are rotated.
        let authorization = match self.authorization_file.clone() {
            None => None,
            Some(file) => Some(self.files.run(move || authorization(&file)).await?),
        };
        self.poster.post(authorization, body).await
    }
}

impl Deliver for Http {
    async fn deliver(&mut self, lines: &[Bytes]) -> Result<(), Undelivered> {
        let mut body = Vec::new();
        for line in lines {
            body.extend_from_slice(line);
            body.push(b'\n');
        }
        match timeout(PATIENCE, self.post(body.into())).await {
            Ok(Ok(status)) => judge(status),
            Ok(Err(reason)) => Err(Undelivered::Failed(reason)),
            Err(_) => Err(Undelivered::Failed(format!(
                "no response within {PATIENCE:?}"
            ))),
        }
    }

    async fn lost(&mut self) -> String {
        // Every batch was answered.
        pending().await
    }

    async fn close(&mut self) {}
}

fn judge(status: StatusCode) -> Result<(), Undelivered> {
    let responded = |hint: &str| format!("the collector responded with {status}{hint}");
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNPROCESSABLE_ENTITY => Err(Undelivered::Refused(responded(""))),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Undelivered::Failed(responded(
            "; it must permit what `authorization_file` or `certificate_file` presents",
        ))),
        status if status.is_redirection() => Err(Undelivered::Failed(responded(
            "; redirects aren't followed, so `to` must be where records are taken",
        ))),
        _ => Err(Undelivered::Failed(responded(""))),
    }
}

/// Reads the value of the header.
fn authorization(file: &Path) -> Result<HeaderValue, String> {
    let what = "the collector's credential (`authorization_file`)";
    let malformed = || {
        format!(
            "{}: {what} must be one line of visible characters, such as `Bearer TOKEN`",
            file.display()
        )
    };
    let bytes = read_private(file, what, Allowed::OwnerAndGroup, MAX_AUTHORIZATION + 1)
        .map_err(|error| format!("{}: {error}", file.display()))?;
    let line = bytes.trim_ascii();
    if line.is_empty() || line.len() > MAX_AUTHORIZATION {
        return Err(malformed());
    }
    let mut value = HeaderValue::from_bytes(line).map_err(|_| malformed())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_status_says_whether_to_try_again() {
        let judged = |status: u16| match judge(StatusCode::from_u16(status).expect("a status")) {
            Ok(()) => "taken",
            Err(Undelivered::Refused(_)) => "refused",
            Err(Undelivered::Failed(_)) => "later",
        };
        for (status, expected) in [
            (200, "taken"),
            (204, "taken"),
            (400, "refused"),
            (413, "refused"),
            (422, "refused"),
            (302, "later"),
            (307, "later"),
            (308, "later"),
            (401, "later"),
            (403, "later"),
            (404, "later"),
            (429, "later"),
            (500, "later"),
            (503, "later"),
        ] {
            assert_eq!(judged(status), expected, "{status}");
        }
    }

    #[test]
    fn a_credential_is_one_private_line_and_never_shown() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let read = |text: &str, mode: u32| {
            fs::write(&file, text).expect("written");
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("a mode");
            authorization(file.path())
        };
        let value = read("Splunk t0ken\n", 0o600).expect("a value");
        assert_eq!(value.as_bytes(), b"Splunk t0ken");
        assert!(!format!("{value:?}").contains("t0ken"));
        let exposed = read("Splunk t0ken\n", 0o644).expect_err("exposed");
        assert!(exposed.contains("chmod o="), "{exposed}");
        let longest = "t".repeat(MAX_AUTHORIZATION);
        assert!(read(&longest, 0o600).is_ok());
        for text in ["", "\n", "a\nt0ken", &format!("{longest}t0ken")] {
            let error = read(text, 0o600).expect_err("malformed");
            assert!(error.contains("must be one line"), "{error}");
            assert!(!error.contains("t0ken"), "{error}");
        }
    }
}
