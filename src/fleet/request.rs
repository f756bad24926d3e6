//! One request to an ops listener or a hub.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;

use super::{connect::Connector, hub};
use crate::{model::HttpUrl, wire::JSON};

/// The longest problem that is read, in bytes.
const MAX_PROBLEM: usize = 64 << 10;

/// Where a request goes.
pub(super) struct Target<'t> {
    pub(super) url: &'t HttpUrl,
    /// The name to expect in its certificate, unless the settings name another.
    #[cfg_attr(
        not(feature = "tls"),
        expect(dead_code, reason = "unused in builds without TLS")
    )]
    pub(super) host: &'t str,
    /// The value of the header `Authorization`.
    pub(super) token: Option<&'t HeaderValue>,
}

/// Fetches `path`, up to `limit` bytes.
///
/// # Errors
/// A message for the operator.
pub(super) async fn get(
    connector: &Connector,
    to: &Target<'_>,
    path: &str,
    limit: usize,
) -> Result<Bytes, String> {
    send(connector, to, (Method::GET, path), Vec::new(), limit).await
}

/// Posts JSON to `path`, and returns the response, up to `limit` bytes.
///
/// # Errors
/// A message for the operator.
pub(super) async fn post(
    connector: &Connector,
    to: &Target<'_>,
    path: &str,
    json: Vec<u8>,
    limit: usize,
) -> Result<Bytes, String> {
    send(connector, to, (Method::POST, path), json, limit).await
}

async fn send(
    connector: &Connector,
    to: &Target<'_>,
    (method, path): (Method, &str),
    json: Vec<u8>,
    limit: usize,
) -> Result<Bytes, String> {
    let message = Message {
        method,
        path,
        condition: None,
        json,
    };
    let (status, body) = exchange(connector, to, message, limit).await?;
    if status.is_success() {
        Ok(body)
    } else {
        Err(refusal(status, &body, path))
    }
}

/// A request.
pub(super) struct Message<'m> {
    pub(super) method: Method,
    pub(super) path: &'m str,
    /// A header that makes it conditional (RFC 9110, 13.1).
    pub(super) condition: Option<(HeaderName, HeaderValue)>,
    /// Its body, unless that is empty.
    pub(super) json: Vec<u8>,
}

/// Sends a request, and returns the status and body of the response. The body of a success may have
/// up to `limit` bytes.
///
/// # Errors
/// A message for the operator: there is no response.
pub(super) async fn exchange(
    connector: &Connector,
    to: &Target<'_>,
    message: Message<'_>,
    limit: usize,
) -> Result<(StatusCode, Bytes), String> {
    let stream = connector.connect(to).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let mut request = Request::builder()
        .method(message.method)
        .uri(message.path)
        .header(HOST, to.url.authority());
    if let Some(token) = to.token {
        request = request.header(AUTHORIZATION, token);
    }
    if let Some((name, value)) = message.condition {
        request = request.header(name, value);
    }
    if !message.json.is_empty() {
        request = request.header(CONTENT_TYPE, JSON);
    }
    let request = request
        .body(Full::new(Bytes::from(message.json)))
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let status = response.status();
        if status.is_success() {
            Ok((status, read(response, limit).await?))
        } else {
            Ok((
                status,
                read(response, MAX_PROBLEM).await.unwrap_or_default(),
            ))
        }
    };
    // In this task, so that the connection ends with the request.
    tokio::select! {
        biased;
        answer = exchange => answer,
        Err(error) = connection => Err(error.to_string()),
    }
}

async fn read(response: Response<Incoming>, limit: usize) -> Result<Bytes, String> {
    let body = Limited::new(response.into_body(), limit).collect().await;
    body.map(|body| body.to_bytes()).map_err(|error| {
        if error.is::<LengthLimitError>() {
            format!("the response is longer than {limit} bytes")
        } else {
            error.to_string()
        }
    })
}

/// The members of a problem (RFC 9457) that say what to do.
#[derive(Deserialize)]
struct Refusal {
    code: String,
    detail: String,
}

/// Describes the response to a request that failed.
pub(super) fn refusal(status: StatusCode, body: &[u8], path: &str) -> String {
    let said = match serde_json::from_slice(body) {
        Ok(Refusal { code, detail }) => format!("{code}: {detail}"),
        Err(_) => format!("{path} returned {status}"),
    };
    match status {
        StatusCode::FORBIDDEN if !path.starts_with(hub::PATHS) => format!(
            "{said} (client certificate: --sidecar-cert and --sidecar-key, or \
             `tls.certificate_file` and `tls.key_file` in the fleet file)"
        ),
        _ => said,
    }
}
