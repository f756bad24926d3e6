//! `POST /prove`: whether this process holds the key of a version.

use hyper::{Response, StatusCode, header::CONTENT_TYPE, http::request};

use super::{OpsParts, find_keyring, response};
use crate::{
    http::{problem::Problem, response::ResponseBody},
    session::ProofError,
    wire::{
        Code, JSON,
        proof::{Proof, ProofRequest},
    },
};

pub(super) const PROOFS: &str = "sidekey_proofs_total";

/// Answers with a proof.
pub(super) fn prove(
    parts: &OpsParts,
    head: &request::Parts,
    body: &[u8],
) -> Result<Response<ResponseBody>, Problem> {
    // A web page can't send it without asking first, so it can't use up the limit of proofs.
    if head
        .headers
        .get(CONTENT_TYPE)
        .is_none_or(|kind| kind != JSON)
    {
        let detail = format!("send the header Content-Type: {JSON}");
        return Err(Problem::new(Code::UnsupportedMediaType, detail));
    }
    let request: ProofRequest = serde_json::from_slice(body).map_err(|error| {
        let detail = format!(
            "send {{\"keyring\": NAME, \"rollout\": 32 DIGITS, \"version\": N, \"nonce\": BASE64}}\
             : {error}"
        );
        Problem::new(Code::InvalidRequest, detail)
    })?;
    let json = serde_json::to_vec(&answer(parts, &request)?)
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    Ok(response(StatusCode::OK, JSON, json))
}

/// Proves that a key is held, and counts the request, for any caller.
pub(super) fn answer(parts: &OpsParts, request: &ProofRequest) -> Result<Proof, Problem> {
    let keyring = find_keyring(parts, request.keyring.as_str())?;
    let proof = parts
        .prover
        .prove(keyring, request, parts.clock.now())
        .map_err(problem);
    let result = proof
        .as_ref()
        .map_or_else(|problem| problem.code.as_str(), |_| "ok");
    let labels = [("keyring", keyring.name().as_str()), ("result", result)];
    parts.registry.counter(PROOFS, &labels).increment(1);
    proof
}

fn problem(error: ProofError) -> Problem {
    let detail = error.to_string();
    match error {
        ProofError::Session(error) => error.into(),
        ProofError::NonceUsed => Problem::new(Code::InvalidRequest, detail),
        ProofError::TooMany { retry_after } => {
            let seconds = retry_after.as_secs().saturating_add(1);
            Problem::new(Code::Overloaded, detail)
                .retry_after(u32::try_from(seconds).unwrap_or(u32::MAX))
        }
        ProofError::TrialFailed => Problem::new(Code::Internal, detail),
    }
}
