//! Problem details (RFC 9457) with a stable code. docs/errors.md lists the codes.

use std::borrow::Cow;

use hyper::{
    Response,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::wire::{Code, PROBLEM};

/// An error response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its stable code.
    pub code: Code,
    detail: Cow<'static, str>,
    /// Seconds after which a retry may succeed.
    retry_after: Option<u32>,
    allow: Option<&'static str>,
}

impl Problem {
    /// Creates a problem. `detail` says what failed and what the caller can do about it.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
            retry_after: None,
            allow: None,
        }
    }

    /// What failed and what the caller can do about it.
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// Creates a problem that lists the allowed methods.
    pub(crate) fn method_not_allowed(allow: &'static str) -> Self {
        Self {
            allow: Some(allow),
            ..Self::new(Code::MethodNotAllowed, format!("allowed: {allow}"))
        }
    }

    /// Adds the time after which a retry may succeed.
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The problem details as JSON.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        match serde_json::to_vec(self) {
            Ok(json) => json,
            Err(error) => unreachable!("strings and numbers serialize: {error}"),
        }
    }

    /// Converts into a response with the problem details as its body.
    pub fn into_response<B: From<Vec<u8>>>(self) -> Response<B> {
        let mut response = Response::new(B::from(self.to_json()));
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if self.code == Code::Unauthorized {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_struct("Problem", 4)?;
        members.serialize_field("code", self.code.as_str())?;
        members.serialize_field("title", self.code.title())?;
        members.serialize_field("status", &self.code.status().as_u16())?;
        members.serialize_field("detail", &self.detail)?;
        members.end()
    }
}
