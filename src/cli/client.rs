use std::{
    io::{self, Read, Write},
    path::PathBuf,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::{
    output::{Failure, Format, columns, print},
    shown,
};
use crate::crypto::{TEXT_PREFIX, from_text, to_text};

#[derive(Debug, Args)]
pub(super) struct Connection {
    /// The sidecar's socket.
    #[arg(long, value_name = "PATH", env = "SIDEKEY_SOCKET", default_value = ".sidekey/sidekey.sock")]
    socket: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Transform {
    #[command(flatten)]
    connection: Connection,
    /// The keyring.
    #[arg(long)]
    keyring: String,
    /// The context that the ciphertext is bound to; decrypting needs the same.
    #[arg(long, value_name = "TEXT", default_value = "")]
    aad: String,
    /// Write ciphertext in the text form, `sk1.…`. Both forms are read.
    #[arg(long)]
    text: bool,
}

#[derive(Deserialize)]
struct Problem {
    code: String,
    title: String,
    detail: String,
}

impl Connection {
    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        aad: &str,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, Failure> {
        let failed = |error: String| {
            Failure::failed(format!(
                "{}: {error}; is the sidecar running, and is this its socket (--socket, SIDEKEY_SOCKET)?",
                shown(&self.socket)
            ))
        };
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| failed(error.to_string()))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(error.to_string()))?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(HOST, "sidekey");
        if let Some(content_type) = content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        if !aad.is_empty() {
            request = request.header("Sidekey-Aad", STANDARD.encode(aad));
        }
        let request =
            request.body(Full::new(Bytes::from(body))).map_err(|error| Failure::usage(format!("--keyring: {error}")))?;
        sender.send_request(request).await.map_err(|error| failed(error.to_string()))
    }

    async fn fetch(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        aad: &str,
        body: Vec<u8>,
    ) -> Result<Bytes, Failure> {
        let response = self.send(method, path, content_type, aad, body).await?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| Failure::failed(format!("the answer broke off: {error}")))?
            .to_bytes();
        if status == StatusCode::OK {
            return Ok(body);
        }
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Failure::problem(&problem.code, format!("{}: {} ({})", problem.title, problem.detail, problem.code)),
            Err(_) => Failure::failed(format!("the sidecar answered {status}")),
        })
    }

    pub(super) async fn status(self, format: Format) -> Result<(), Failure> {
        let body = self.fetch(Method::GET, "/v1/keyrings", None, "", Vec::new()).await?;
        let status: Value =
            serde_json::from_slice(&body).map_err(|error| Failure::failed(format!("the answer is not JSON: {error}")))?;
        print(format, &status, || describe(&status))
    }
}

fn describe(status: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut rows = vec![["KEYRING", "GENERATION", "WAVE", "PRIMARY", "VERSIONS", "ENCRYPTS UNTIL"].map(String::from).to_vec()];
    for keyring in status["keyrings"].as_array().into_iter().flatten() {
        let versions = keyring["versions"].as_array().into_iter().flatten();
        let versions: Vec<String> =
            versions.map(|version| format!("{} {}", text(&version["version"]), text(&version["role"]))).collect();
        let columns = ["name", "generation", "wave", "primary"].map(|member| text(&keyring[member]));
        rows.push(columns.into_iter().chain([versions.join(", "), text(&keyring["encrypt_until"])]).collect());
    }
    columns(&rows)
}

impl Transform {
    pub(super) async fn encrypt(self, format: Format) -> Result<(), Failure> {
        let input = standard_input()?;
        match format {
            Format::Json => {
                self.as_json("encrypt", json!({ "plaintext": STANDARD.encode(input), "aad": STANDARD.encode(&self.aad) })).await
            }
            Format::Text => self.as_bytes("encrypt", input).await,
        }
    }

    pub(super) async fn decrypt(self, format: Format) -> Result<(), Failure> {
        self.of_ciphertext("decrypt", format).await
    }

    pub(super) async fn rewrap(self, format: Format) -> Result<(), Failure> {
        self.of_ciphertext("rewrap", format).await
    }

    async fn of_ciphertext(self, operation: &str, format: Format) -> Result<(), Failure> {
        let input = standard_input()?;
        let message = match str::from_utf8(&input) {
            Ok(text) if text.starts_with(TEXT_PREFIX) => {
                from_text(text.trim_end()).map_err(|error| Failure::failed(error.to_string()))?
            }
            _ => input,
        };
        match format {
            Format::Json => {
                self.as_json(operation, json!({ "ciphertext": to_text(&message), "aad": STANDARD.encode(&self.aad) })).await
            }
            Format::Text => self.as_bytes(operation, message).await,
        }
    }

    fn path(&self, operation: &str) -> String {
        format!("/v1/keyrings/{}/{operation}", self.keyring)
    }

    async fn as_json(&self, operation: &str, body: Value) -> Result<(), Failure> {
        let answer = self
            .connection
            .fetch(Method::POST, &self.path(operation), Some("application/json"), "", body.to_string().into_bytes())
            .await?;
        let answer: Value =
            serde_json::from_slice(&answer).map_err(|error| Failure::failed(format!("the answer is not JSON: {error}")))?;
        print(Format::Json, &answer, String::new)
    }

    async fn as_bytes(&self, operation: &str, body: Vec<u8>) -> Result<(), Failure> {
        let path = self.path(operation);
        let answer = self.connection.fetch(Method::POST, &path, Some("application/octet-stream"), &self.aad, body).await?;
        let mut out = io::stdout().lock();
        if self.text && operation != "decrypt" {
            writeln!(out, "{}", to_text(&answer))?;
        } else {
            out.write_all(&answer)?;
        }
        out.flush()?;
        Ok(())
    }
}

fn standard_input() -> Result<Vec<u8>, Failure> {
    let mut input = Vec::new();
    io::stdin().lock().read_to_end(&mut input).map_err(|error| Failure::failed(format!("can't read standard input: {error}")))?;
    Ok(input)
}
