//! `GET /v1/secrets/{name}`, as bytes.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::{HeaderMap, Method, StatusCode, header::ACCEPT};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{SidecarError, Socket, broken_off, refusal, request, whole};
use crate::{model::SecretName, wire::OCTETS};

/// How long an answer may take as a whole.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest value, in bytes; a sidecar's own limit is at most that.
const LONGEST_VALUE: usize = 16 << 20;

/// A secret's value, or that of one of its fields.
pub struct Fetched {
    /// The bytes as they are at the provider.
    pub value: Zeroizing<Vec<u8>>,
    /// The secret's version.
    pub version: Option<String>,
}

/// The current value of a secret, or of one field of a secret that is a JSON object.
///
/// # Errors
/// The sidecar can't be reached, refuses, or is silent.
pub async fn fetch_secret(
    socket: &Socket,
    name: &SecretName,
    field: Option<&str>,
) -> Result<Fetched, SidecarError> {
    let silent = |_| SidecarError::Unexpected(format!("it was not whole within {PATIENCE:?}"));
    timeout(PATIENCE, fetch(socket, name, field))
        .await
        .map_err(silent)?
}

async fn fetch(
    socket: &Socket,
    name: &SecretName,
    field: Option<&str>,
) -> Result<Fetched, SidecarError> {
    let mut path = format!("/v1/secrets/{name}");
    if let Some(field) = field {
        path.push_str(&format!(
            "?field={}",
            utf8_percent_encode(field, NON_ALPHANUMERIC)
        ));
    }
    let request = request(Method::GET, &path)
        .header(ACCEPT, OCTETS)
        .body(whole(""));
    let response = socket
        .send(request.map_err(|error| SidecarError::Unexpected(error.to_string()))?)
        .await?;
    if response.status() != StatusCode::OK {
        return Err(refusal(response).await);
    }
    let version = version(response.headers());
    let mut body = Limited::new(response.into_body(), LONGEST_VALUE);
    let mut value = Zeroizing::new(Vec::new());
    while let Some(frame) = body.frame().await {
        let piece = frame
            .map_err(|error| broken_off(&*error))?
            .into_data()
            .unwrap_or_default();
        append(&mut value, &piece);
    }
    Ok(Fetched { value, version })
}

/// A vector that grows leaves its bytes behind, so this one moves to a new one.
fn append(value: &mut Zeroizing<Vec<u8>>, piece: &[u8]) {
    if value.capacity() - value.len() < piece.len() {
        let mut longer = Zeroizing::new(Vec::with_capacity(
            (value.len() + piece.len()).next_power_of_two(),
        ));
        longer.extend_from_slice(value);
        *value = longer;
    }
    value.extend_from_slice(piece);
}

fn version(headers: &HeaderMap) -> Option<String> {
    headers
        .get("sidekey-secret-version")?
        .to_str()
        .ok()
        .map(str::to_owned)
}
