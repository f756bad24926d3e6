use std::{collections::HashMap, fmt, sync::Arc};

use azure_core::{
    Bytes, Error, Result,
    error::ErrorKind,
    http::{
        AsyncRawResponse, Body, HttpClient, Request,
        headers::{HeaderName, HeaderValue, Headers},
    },
};

use crate::backend::{KekFault, heard, web::Web};

/// The longest answer.
const ANSWER: usize = 4 << 20;

/// Carries the SDK's requests over our own connections, so that there is one HTTP and one TLS stack.
pub(super) struct Courier(pub(super) Arc<Web>);

impl fmt::Debug for Courier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Courier")
    }
}

#[async_trait::async_trait]
impl HttpClient for Courier {
    async fn execute_request(&self, request: &Request) -> Result<AsyncRawResponse> {
        let mut builder = hyper::Request::builder()
            .method(request.method().as_str())
            .uri(request.url().as_str());
        for (name, value) in request.headers().iter() {
            builder = builder.header(name.as_str(), value.as_str());
        }
        let body = match request.body() {
            Body::Bytes(bytes) => bytes.clone(),
            Body::SeekableStream(_) => {
                return Err(Error::with_message(
                    ErrorKind::Other,
                    "nothing here is sent as a stream",
                ));
            }
        };
        let request = builder
            .body(body)
            .map_err(|error| Error::with_error(ErrorKind::Other, error, "a request"))?;
        let answer = self.0.send(request, ANSWER).await.map_err(|error| {
            // Of a kind that the SDK doesn't try again: whoever asks for a key does so himself, and has other KEKs to ask meanwhile.
            Error::with_message(ErrorKind::Other, error.to_string())
        })?;
        // The SDK tries these again, as late as the answer asks for.
        match answer.status.as_u16() {
            429 => heard::note(KekFault::Throttled, "Azure answered 429".into()),
            500.. => heard::note(
                KekFault::Unavailable,
                format!("Azure answered {}", answer.status.as_u16()),
            ),
            _ => {}
        }
        let headers: HashMap<_, _> = answer
            .headers
            .iter()
            .filter_map(|(name, value)| {
                let value = value.to_str().ok()?.to_owned();
                Some((
                    HeaderName::from(name.as_str().to_owned()),
                    HeaderValue::from(value),
                ))
            })
            .collect();
        // Zeroized when the SDK has read it.
        let body = Bytes::from_owner(answer.body);
        Ok(AsyncRawResponse::from_bytes(
            answer.status.as_u16().into(),
            Headers::from(headers),
            body,
        ))
    }
}
