//! Posts to a server whose answer doesn't matter beyond its status.

use bytes::Bytes;
use hyper::{
    Request, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};

use super::{Identity, http_client::HttpClient, plain_http::redacted};

/// The longest response that is read, in bytes.
const MAX_RESPONSE: usize = 1 << 20;

/// Posts to one URL, by the same rules for TLS and proxies as all backends. Follows no redirect:
/// where one leads may contain a credential too, and isn't what the operator chose.
pub(crate) struct Poster {
    client: HttpClient,
    url: String,
    content_type: &'static str,
}

impl Poster {
    /// Reads the files of `identity` at first use, and again when they have changed.
    pub(crate) fn new(url: &str, content_type: &'static str, identity: Identity) -> Self {
        Self {
            client: HttpClient::new(identity, &[]),
            url: url.to_owned(),
            content_type,
        }
    }

    /// Posts `body`, and returns the status of the answer, which may be a redirect. The caller
    /// limits the time.
    ///
    /// # Errors
    /// There is no answer: why, for the operator, without the URL's path and query, which may
    /// contain a credential.
    pub(crate) async fn post(
        &self,
        authorization: Option<HeaderValue>,
        body: Bytes,
    ) -> Result<StatusCode, String> {
        let mut request = Request::post(&self.url).header(CONTENT_TYPE, self.content_type);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(body).map_err(|error| error.to_string())?;
        let response = self.client.send_once(request, MAX_RESPONSE).await;
        response
            .map(|response| response.status)
            .map_err(|failure| self.without_path(&failure.message))
    }

    fn without_path(&self, message: &str) -> String {
        let Ok(url) = self.url.parse::<Uri>() else {
            return "this is not a URL".into();
        };
        let origin = format!(
            "{}://{}",
            url.scheme_str().unwrap_or_default(),
            url.authority().map_or("", |authority| authority.as_str())
        );
        message.replace(&redacted(&url), &origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_shows_no_path() {
        let poster = Poster::new("https://a:1/t0ken?key=k", "text/plain", Identity::default());
        assert_eq!(
            poster.without_path("https://a:1/t0ken?…: connection refused"),
            "https://a:1: connection refused"
        );
    }
}
