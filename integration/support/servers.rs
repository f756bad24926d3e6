//! Starts the real servers that integration/install-backends installs.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Mutex,
};

use serde_json::{Value, json};

use super::harness::wait;

/// The directory where integration/install-backends puts them.
pub fn installed(path: &str) -> PathBuf {
    let folder =
        std::env::var("SIDEKEY_TEST_BACKENDS").unwrap_or_else(|_| "target/backends".into());
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(folder)
        .join(path);
    assert!(
        path.exists(),
        "{} is missing; integration/install-backends installs it",
        path.display()
    );
    path
}

/// Returns a port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Sends a request without TLS to `address`, and returns the response's status and body. Much
/// cheaper than a server's own command. `headers` end with a line break.
fn request(
    address: &str,
    method_and_path: &str,
    headers: &str,
    body: &str,
) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    // In HTTP/1.0, the end of the connection is the end of the body.
    write!(
        stream,
        "{method_and_path} HTTP/1.0\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let malformed = || io::Error::other(format!("{address}: {response:?}"));
    let (head, body) = response.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head.get(9..12).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(malformed)?, body.to_owned()))
}

/// Implementations of Vault's API.
#[derive(Clone, Copy)]
pub enum Brand {
    Vault,
    OpenBao,
}

impl Brand {
    fn program(self) -> PathBuf {
        installed(match self {
            Self::Vault => "bin/vault",
            Self::OpenBao => "bin/bao",
        })
    }
}

/// A Vault or OpenBao server, killed when dropped.
pub struct Vault {
    program: PathBuf,
    child: Child,
    pub address: String,
    pub token: String,
    unseal_key: String,
    ca: Option<PathBuf>,
}

impl Vault {
    /// Starts an unsealed server without TLS, with Transit, key-value version 2 (`secret`), AppRole
    /// and JWT.
    pub fn start() -> Self {
        Self::start_of(Brand::Vault)
    }

    /// Like the above, for either implementation.
    pub fn start_of(brand: Brand) -> Self {
        let port = free_port();
        let log = tempfile::NamedTempFile::new().unwrap();
        let program = brand.program();
        let child = Command::new(&program)
            .args([
                "server",
                "-dev",
                "-dev-root-token-id=root",
                "-dev-no-store-token",
            ])
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(log.reopen().unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut vault = Self {
            program,
            child,
            address: format!("http://127.0.0.1:{port}"),
            token: "root".into(),
            unseal_key: String::new(),
            ca: None,
        };
        wait("Vault", || {
            let said = std::fs::read_to_string(log.path()).unwrap();
            let key = said
                .lines()
                .find_map(|line| line.strip_prefix("Unseal Key: "));
            vault.unseal_key = key.unwrap_or_default().to_owned();
            let is_active = || {
                let health = request(vault.host(), "GET /v1/sys/health", "", "");
                health.is_ok_and(|(status, _)| status == 200)
            };
            !vault.unseal_key.is_empty() && is_active()
        });
        vault.post("sys/mounts/transit", &json!({ "type": "transit" }));
        vault.post("transit/keys/kek", &json!({}));
        vault.post("sys/auth/approle", &json!({ "type": "approle" }));
        vault.post("sys/auth/jwt", &json!({ "type": "jwt" }));
        vault
    }

    /// Starts an unsealed server with TLS and Transit. It uses the certificate `server.pem` in
    /// `folder` and requires a client certificate.
    pub fn start_with_tls(folder: &Path) -> Self {
        let port = free_port();
        let at = |name: &str| folder.join(name).display().to_string();
        let config = format!(
            "storage \"inmem\" {{}}\ndisable_mlock = true\n\
             listener \"tcp\" {{\n  address = \"127.0.0.1:{port}\"\n  \
             tls_cert_file = \"{}\"\n  tls_key_file = \"{}\"\n  \
             tls_require_and_verify_client_cert = true\n  \
             tls_client_ca_file = \"{}\"\n}}\n",
            at("server.pem"),
            at("server.key"),
            at("ca.pem")
        );
        std::fs::write(folder.join("vault.hcl"), config).unwrap();
        let program = Brand::Vault.program();
        let child = Command::new(&program)
            .args(["server", "-config", &at("vault.hcl")])
            .stdin(Stdio::null())
            .stdout(File::create(folder.join("vault.log")).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut vault = Self {
            program,
            child,
            address: format!("https://127.0.0.1:{port}"),
            token: String::new(),
            unseal_key: String::new(),
            ca: Some(folder.to_owned()),
        };
        wait("Vault", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        let made = vault.run(&[
            "operator",
            "init",
            "-key-shares=1",
            "-key-threshold=1",
            "-format=json",
        ]);
        let made: serde_json::Value = serde_json::from_str(&made).unwrap();
        vault.unseal_key = made["unseal_keys_b64"][0].as_str().unwrap().into();
        vault.token = made["root_token"].as_str().unwrap().into();
        vault.unseal();
        wait("an active Vault", || {
            vault
                .command(&["secrets", "enable", "transit"])
                .status
                .success()
        });
        vault.run(&["write", "-f", "transit/keys/kek"]);
        vault
    }

    /// Returns the host and port of a server without TLS.
    fn host(&self) -> &str {
        self.address.strip_prefix("http://").expect("no TLS")
    }

    /// Posts to `path` below `/v1/` as root; it must succeed. The server has no TLS.
    fn post(&self, path: &str, body: &Value) -> Value {
        let (target, token) = (
            format!("POST /v1/{path}"),
            format!("X-Vault-Token: {}\r\n", self.token),
        );
        let (status, answer) = request(self.host(), &target, &token, &body.to_string()).unwrap();
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        serde_json::from_str(&answer).unwrap_or_default()
    }

    fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("VAULT_ADDR", &self.address)
            .env("VAULT_TOKEN", &self.token);
        if let Some(folder) = &self.ca {
            command
                .env("VAULT_CACERT", folder.join("ca.pem"))
                .env("VAULT_CLIENT_CERT", folder.join("client.pem"))
                .env("VAULT_CLIENT_KEY", folder.join("client.key"));
        }
        command.output().unwrap()
    }

    /// Runs the command `vault` or `bao` as root; it must succeed.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        assert!(
            output.status.success(),
            "vault {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Like `run`, but returns whether the command succeeded.
    pub fn succeeds(&self, arguments: &[&str]) -> bool {
        self.command(arguments).status.success()
    }

    /// Creates a policy from `(path, capability)` pairs.
    pub fn policy(&self, name: &str, rights: &[(&str, &str)]) {
        let text: String = rights
            .iter()
            .map(|(path, right)| format!("path \"{path}\" {{ capabilities = [\"{right}\"] }}\n"))
            .collect();
        self.policy_text(name, &text);
    }

    /// Creates a policy from its text.
    pub fn policy_text(&self, name: &str, text: &str) {
        let path = format!("sys/policies/acl/{name}");
        self.post(&path, &json!({ "policy": text }));
    }

    /// Returns a token with a policy's rights.
    pub fn token_with(&self, policy: &str) -> String {
        let made = self.post("auth/token/create", &json!({ "policies": [policy] }));
        made["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    pub fn seal(&self) {
        self.post("sys/seal", &json!({}));
    }

    pub fn unseal(&self) {
        self.run(&["operator", "unseal", &self.unseal_key]);
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// moto, which replaces AWS. It is empty at first, and not shared until it is dropped.
pub struct Moto {
    server: Option<MotoServer>,
    pub address: String,
}

/// Servers that no test uses at the moment. Python takes a second to start one.
static IDLE: Mutex<Vec<MotoServer>> = Mutex::new(Vec::new());

struct MotoServer {
    child: Child,
    address: String,
}

impl Moto {
    pub fn start() -> Self {
        let idle = IDLE.lock().unwrap().pop();
        let server = idle.unwrap_or_else(MotoServer::start);
        Self {
            address: server.address.clone(),
            server: Some(server),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let server = self.server.take().expect("only dropped once");
        if server.is_reset() {
            IDLE.lock().unwrap().push(server);
        }
    }
}

impl MotoServer {
    fn start() -> Self {
        let port = free_port();
        // Statics are never dropped. The end of the tests closes the shell's input.
        let child = Command::new("sh")
            .args(["-c", "\"$0\" -H 127.0.0.1 -p \"$1\" & read _; kill $!"])
            .arg(installed("moto/bin/moto_server"))
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self {
            child,
            address: format!("127.0.0.1:{port}"),
        };
        wait("moto", || TcpStream::connect(&server.address).is_ok());
        server
    }

    /// Forgets everything that a test has stored.
    fn is_reset(&self) -> bool {
        let reset = request(&self.address, "POST /moto-api/reset", "", "");
        reset.is_ok_and(|(status, _)| status == 200)
    }
}

impl Drop for MotoServer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
