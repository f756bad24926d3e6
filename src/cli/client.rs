//! `sidekey encrypt`, `decrypt`, `status`, and `rewrap` of a stream.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use clap::Args;
use http_body_util::BodyExt;
use hyper::{
    Method, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING},
};
use serde_json::{Value, json};

use super::{
    lines::{self, Line, Lines},
    output::{CliError, Format, columns, print},
    transfer::{Input, Output, progress},
};
use crate::{
    client::{RequestBody, Socket, error_of, full_body, incomplete, read_body, request},
    crypto::{TEXT_PREFIX, from_text, to_text},
    wire::{AAD_HEADER, BATCH, JSON, OCTETS},
};

/// Longer inputs, in bytes, are sent as streams while they are read.
const STREAM_THRESHOLD: usize = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct Connection {
    /// Socket of the sidecar.
    #[arg(
        long,
        value_name = "PATH",
        env = "SIDEKEY_SOCKET",
        default_value = ".sidekey/sidekey.sock",
        value_parser = socket_path
    )]
    socket: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Transform {
    #[command(flatten)]
    connection: Connection,
    /// Name of the keyring.
    #[arg(long)]
    keyring: String,
    /// Additional authenticated data; decryption requires the same value.
    #[arg(long, value_name = "TEXT", default_value = "")]
    aad: String,
    /// Write ciphertext in text form (`sk1.…`); input may have either form.
    #[arg(long, conflicts_with = "lines")]
    text: bool,
    /// Process each line separately, with ciphertexts in text form.
    #[arg(long)]
    lines: bool,
    /// Write to this file, which is replaced only on success.
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// File to read instead of standard input.
    #[arg(value_name = "FILE")]
    input: Option<PathBuf>,
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    /// `sun_path` of unix(7) has 108 bytes, of which the last is NUL.
    const LONGEST: usize = 107;
    match text.len() {
        0 => Err("expected a path".into()),
        1..=LONGEST => Ok(text.into()),
        length => Err(format!(
            "{length} bytes long; a socket's path has at most {LONGEST}"
        )),
    }
}

impl Connection {
    pub(super) fn to(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(super) fn socket(&self) -> Socket {
        Socket::new(self.socket.clone())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: RequestBody,
    ) -> Result<Response<Incoming>, CliError> {
        let mut request = request(method, path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(body)
            .map_err(|error| CliError::usage(format!("--keyring: {error}")))?;
        let response = self.socket().send(request).await?;
        if response.status() == StatusCode::OK {
            Ok(response)
        } else {
            Err(error_of(response).await.into())
        }
    }

    async fn fetch(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Bytes, CliError> {
        Ok(read_body(self.send(method, path, headers, full_body(body)).await?).await?)
    }

    /// Fetches `GET /v1/keyrings`.
    pub(super) async fn keyrings(&self) -> Result<Value, CliError> {
        let body = self
            .fetch(Method::GET, "/v1/keyrings", &[], Bytes::new())
            .await?;
        serde_json::from_slice(&body)
            .map_err(|error| CliError::failed(format!("the response is not JSON: {error}")))
    }

    pub(super) async fn status(self, format: Format) -> Result<(), CliError> {
        let status = self.keyrings().await?;
        print(format, &status, || describe(&status))
    }
}

fn describe(status: &Value) -> String {
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let mut rows = vec![
        [
            "KEYRING",
            "GENERATION",
            "WAVE",
            "PRIMARY",
            "VERSIONS",
            "ENCRYPTS UNTIL",
        ]
        .map(String::from)
        .to_vec(),
    ];
    for keyring in status["keyrings"].as_array().into_iter().flatten() {
        let versions = keyring["versions"].as_array().into_iter().flatten();
        let versions: Vec<String> = versions
            .map(|version| format!("{} {}", text(&version["version"]), text(&version["role"])))
            .collect();
        let columns =
            ["name", "generation", "wave", "primary"].map(|member| text(&keyring[member]));
        rows.push(
            columns
                .into_iter()
                .chain([versions.join(", "), text(&keyring["encrypt_until"])])
                .collect(),
        );
    }
    columns(&rows)
}

impl Transform {
    pub(super) async fn encrypt(self, format: Format) -> Result<(), CliError> {
        let mut input = Input::open(self.input.as_deref())?;
        if self.lines {
            return self
                .as_lines("encrypt", input, Line::Plaintext, Line::Ciphertext)
                .await;
        }
        if format == Format::Json {
            let plaintext = STANDARD.encode(input.take(usize::MAX)?);
            return self
                .as_json(
                    "encrypt",
                    json!({ "plaintext": plaintext, "aad": STANDARD.encode(&self.aad) }),
                )
                .await;
        }
        let head = input.take(STREAM_THRESHOLD + 1)?;
        self.as_bytes("encrypt", head, Some(input)).await
    }

    pub(super) async fn decrypt(self, format: Format) -> Result<(), CliError> {
        self.of_ciphertext("decrypt", Line::Plaintext, format).await
    }

    /// Returns the socket, the keyring and the AAD.
    pub(super) fn into_parts(self) -> (PathBuf, String, String) {
        (self.connection.socket, self.keyring, self.aad)
    }

    pub(super) async fn rewrap(self, format: Format) -> Result<(), CliError> {
        self.of_ciphertext("rewrap", Line::Ciphertext, format).await
    }

    async fn of_ciphertext(
        self,
        operation: &str,
        result: Line,
        format: Format,
    ) -> Result<(), CliError> {
        let mut input = Input::open(self.input.as_deref())?;
        if self.lines {
            return self
                .as_lines(operation, input, Line::Ciphertext, result)
                .await;
        }
        let mut head = input.take(STREAM_THRESHOLD + 1)?;
        let is_text = head.starts_with(TEXT_PREFIX.as_bytes());
        if is_text || format == Format::Json {
            head.append(&mut input.take(usize::MAX)?);
        }
        if is_text {
            // Invalid UTF-8 is rejected as invalid base64url.
            let text = String::from_utf8_lossy(&head);
            head = from_text(text.trim_end()).map_err(CliError::failed)?;
        }
        match format {
            Format::Json => {
                self.as_json(
                    operation,
                    json!({ "ciphertext": to_text(&head), "aad": STANDARD.encode(&self.aad) }),
                )
                .await
            }
            // The text form was decoded, so the file's length isn't the body's.
            Format::Text => {
                self.as_bytes(operation, head, (!is_text).then_some(input))
                    .await
            }
        }
    }

    fn path(&self, operation: &str) -> String {
        format!("/v1/keyrings/{}/{operation}", self.keyring)
    }

    async fn as_json(&self, operation: &str, body: Value) -> Result<(), CliError> {
        let headers = [(CONTENT_TYPE.as_str(), JSON)];
        let response = self
            .connection
            .fetch(
                Method::POST,
                &self.path(operation),
                &headers,
                body.to_string().into(),
            )
            .await?;
        let response: Value = serde_json::from_slice(&response)
            .map_err(|error| CliError::failed(format!("the response is not JSON: {error}")))?;
        print(Format::Json, &response, String::new)
    }

    /// Sends `head` and, if it is longer than the threshold, streams the rest of the input.
    async fn as_bytes(
        &self,
        operation: &str,
        head: Vec<u8>,
        rest: Option<Input>,
    ) -> Result<(), CliError> {
        let rest = rest.filter(|_| head.len() > STREAM_THRESHOLD);
        let bar = progress(rest.as_ref().and_then(|rest| rest.length));
        let body = match rest {
            Some(rest) => rest.into_body(head, &bar).boxed_unsync(),
            None => full_body(head),
        };
        let mut response = self.post(operation, OCTETS, body).await?;
        let mut output = Output::open(self.out.as_deref())?;
        let mut text = (self.text && operation != "decrypt").then(Vec::new);
        while let Some(chunk) = next(&mut response).await? {
            match &mut text {
                // The text form encodes the ciphertext as a whole.
                Some(text) => text.extend_from_slice(&chunk),
                None => output.write(&chunk)?,
            }
        }
        if let Some(message) = text {
            output.write(format!("{}\n", to_text(&message)).as_bytes())?;
        }
        bar.finish_and_clear();
        output.finish()
    }

    async fn as_lines(
        &self,
        operation: &str,
        input: Input,
        line: Line,
        result: Line,
    ) -> Result<(), CliError> {
        let sent = Arc::default();
        let body = lines::upload(input, line, &sent).boxed_unsync();
        let mut response = self.post(operation, BATCH, body).await?;
        let mut output = Output::open(self.out.as_deref())?;
        let mut lines = Lines::new(result);
        while let Some(chunk) = next(&mut response).await? {
            lines.write(&chunk, &mut output)?;
        }
        lines.check_complete(sent.load(Ordering::Relaxed))?;
        output.finish()?;
        lines.finish()
    }

    async fn post(
        &self,
        operation: &str,
        content_type: &str,
        body: RequestBody,
    ) -> Result<Incoming, CliError> {
        let aad = STANDARD.encode(&self.aad);
        let mut headers = vec![(CONTENT_TYPE.as_str(), content_type)];
        if !aad.is_empty() {
            headers.push((AAD_HEADER, &aad));
        }
        let response = self
            .connection
            .send(Method::POST, &self.path(operation), &headers, body)
            .await?;
        let headers = response.headers();
        if !headers.contains_key(CONTENT_LENGTH) && !headers.contains_key(TRANSFER_ENCODING) {
            return Err(CliError::failed(
                "the response has neither a length nor chunked encoding, so truncation would go \
                 undetected; an intermediary changed it",
            ));
        }
        Ok(response.into_body())
    }
}

async fn next(response: &mut Incoming) -> Result<Option<Bytes>, CliError> {
    match response.frame().await {
        None => Ok(None),
        Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
        Some(Err(error)) => Err(incomplete(&error).into()),
    }
}
