//! The form of an operation's request and response, which the content type selects.

use hyper::{
    HeaderMap, Request, Response,
    header::{CONTENT_TYPE, HeaderValue},
};

use super::{aad, batch, error::RequestError, job::Job, json, octets};
use crate::{
    config::Limits,
    http::{
        body::{BodySize, BodyStart, BufferedBody, RequestBody},
        problem::Problem,
        response::ResponseBody,
    },
    wire::{self, Code, JSON, OCTETS},
};

const SUPPORTED_TYPES: &str = "send Content-Type: application/octet-stream, application/json or \
                               application/vnd.sidekey.batch";

/// Encrypts, decrypts or rewraps.
pub(super) async fn perform(
    job: &Job<'_>,
    request: Request<RequestBody>,
) -> Result<Response<ResponseBody>, RequestError> {
    let media_type = media_type(request.headers());
    if media_type.eq_ignore_ascii_case(OCTETS.as_bytes()) {
        let aad = aad::from_headers(request.headers())?;
        octets::perform(job, aad, request.into_body()).await
    } else if media_type.eq_ignore_ascii_case(wire::BATCH.as_bytes()) {
        Box::pin(perform_batch(job, request)).await
    } else if media_type.eq_ignore_ascii_case(JSON.as_bytes()) {
        Box::pin(perform_json(job, request)).await
    } else {
        Err(Problem::new(Code::UnsupportedMediaType, SUPPORTED_TYPES).into())
    }
}

/// Responds with a new data key. Boxed by its caller, like the next two: a connection reserves room
/// for the largest future of any request, and most requests send bytes.
pub(super) async fn data_key(
    job: &Job<'_>,
    request: Request<RequestBody>,
) -> Result<Response<ResponseBody>, RequestError> {
    aad::reject_header(request.headers())?;
    let is_json = media_type(request.headers()).eq_ignore_ascii_case(JSON.as_bytes());
    let body = read_json(job, request).await?;
    if !is_json && body.length > 0 {
        return Err(Problem::new(
            Code::UnsupportedMediaType,
            "send Content-Type: application/json, or no body",
        )
        .into());
    }
    json::data_key(job, body)
}

async fn perform_json(
    job: &Job<'_>,
    request: Request<RequestBody>,
) -> Result<Response<ResponseBody>, RequestError> {
    aad::reject_header(request.headers())?;
    let body = read_json(job, request).await?;
    json::perform(job, body).await
}

async fn perform_batch(
    job: &Job<'_>,
    request: Request<RequestBody>,
) -> Result<Response<ResponseBody>, RequestError> {
    let aad = aad::from_headers(request.headers())?;
    let body = request.into_body();
    let start = BodyStart::default();
    let body = job.bodies.stream(job.account, body, start).await?;
    batch::perform(job, aad, body).await
}

async fn read_json(job: &Job<'_>, request: Request<RequestBody>) -> Result<BufferedBody, Problem> {
    let size = BodySize {
        max_len: job.limits.json_body,
        memory_factor: Limits::JSON_COST,
    };
    let (body, start) = (request.into_body(), BodyStart::default());
    job.bodies
        .read(job.account, body, start, size, Vec::with_capacity)
        .await
}

/// The media type of a request without parameters; empty if there is none.
fn media_type(headers: &HeaderMap) -> &[u8] {
    headers
        .get(CONTENT_TYPE)
        .map_or(&b""[..], HeaderValue::as_bytes)
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii()
}
