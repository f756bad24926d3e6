//! The `Sidekey-Aad` header: additional authenticated data in base64.

use hyper::{HeaderMap, header::HeaderName};

use crate::{
    encoding::{NotBase64, decode_base64},
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
    let mut aad = Vec::new();
    decode_base64(value.as_bytes(), &mut aad).map_err(|NotBase64| {
        let expected = NotBase64::EXPECTED;
        Problem::new(
            Code::InvalidRequest,
            format!("the header Sidekey-Aad is {expected}"),
        )
    })?;
    Ok(aad)
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
