//! `GET /v1/secrets/{name}`.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::{HeaderMap, Method, StatusCode, header::ACCEPT};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{
    error::SidecarError,
    response::{error_of, incomplete},
    socket::{Socket, full_body, request},
};
use crate::{
    model::{Conversion, SecretName},
    wire::OCTETS,
};

/// The time limit for a complete response.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The longest value, in bytes; a sidecar's own limit is at most this.
const MAX_VALUE: usize = 16 << 20;

/// The value of a secret or of one of its fields.
pub struct Fetched {
    /// The bytes as the provider stores them, after the conversion.
    pub value: Zeroizing<Vec<u8>>,
    /// The secret's version, if the provider has versions.
    pub version: Option<String>,
}

/// Fetches the current value of a secret, or of one field of a secret that is a JSON object, after
/// `conversion`.
///
/// # Errors
/// The sidecar can't be reached, returns an error, or doesn't respond in time.
pub async fn fetch_secret(
    socket: &Socket,
    name: &SecretName,
    field: Option<&str>,
    conversion: Conversion,
) -> Result<Fetched, SidecarError> {
    let timed_out =
        |_| SidecarError::Unexpected(format!("no complete response within {TIMEOUT:?}"));
    timeout(TIMEOUT, fetch(socket, name, field, conversion))
        .await
        .map_err(timed_out)?
}

async fn fetch(
    socket: &Socket,
    name: &SecretName,
    field: Option<&str>,
    conversion: Conversion,
) -> Result<Fetched, SidecarError> {
    let mut path = format!("/v1/secrets/{name}?");
    if let Some(field) = field {
        path.push_str(&format!(
            "field={}&",
            utf8_percent_encode(field, NON_ALPHANUMERIC)
        ));
    }
    for (key, value) in conversion.parameters() {
        path.push_str(&format!("{key}={value}&"));
    }
    path.pop();
    let request = request(Method::GET, &path)
        .header(ACCEPT, OCTETS)
        .body(full_body(""));
    let response = socket
        .send(request.map_err(|error| SidecarError::Unexpected(error.to_string()))?)
        .await?;
    if response.status() != StatusCode::OK {
        return Err(error_of(response).await);
    }
    let version = version(response.headers());
    let mut body = Limited::new(response.into_body(), MAX_VALUE);
    let mut value = Zeroizing::new(Vec::new());
    while let Some(frame) = body.frame().await {
        let chunk = frame
            .map_err(|error| incomplete(&*error))?
            .into_data()
            .unwrap_or_default();
        append(&mut value, &chunk);
    }
    Ok(Fetched { value, version })
}

/// Appends without reallocating in place, which would leave a copy of the bytes behind.
fn append(value: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    if value.capacity() - value.len() < chunk.len() {
        let mut longer = Zeroizing::new(Vec::with_capacity(
            (value.len() + chunk.len()).next_power_of_two(),
        ));
        longer.extend_from_slice(value);
        *value = longer;
    }
    value.extend_from_slice(chunk);
}

fn version(headers: &HeaderMap) -> Option<String> {
    headers
        .get("sidekey-secret-version")?
        .to_str()
        .ok()
        .map(str::to_owned)
}
