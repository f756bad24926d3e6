//! The `Sidekey-Aad` header: additional authenticated data in base64.

use ::base64::Engine;
use hyper::{HeaderMap, header::HeaderName};

use super::base64::ANY_PADDING;
use crate::{
    http::problem::Problem,
    wire::{self, Code},
};

const AAD_HEADER: HeaderName = HeaderName::from_static(wire::AAD_HEADER);

/// Returns the AAD; empty without the header.
pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Vec<u8>, Problem> {
    let mut values = headers.get_all(AAD_HEADER).iter();
    let Some(value) = values.next() else {
        return Ok(Vec::new());
    };
    if values.next().is_some() {
        return Err(invalid("duplicate Sidekey-Aad header"));
    }
    ANY_PADDING
        .decode(value)
        .map_err(|_| invalid("the Sidekey-Aad header is not valid base64"))
}

/// Rejects the header where it has no effect.
pub(crate) fn reject_header(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.contains_key(AAD_HEADER) {
        return Err(invalid(
            "the Sidekey-Aad header is not used with JSON; set `aad` on each item",
        ));
    }
    Ok(())
}

fn invalid(detail: &'static str) -> Problem {
    Problem::new(Code::InvalidRequest, detail)
}
