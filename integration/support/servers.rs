//! Starts the real servers that integration/install-backends installs.

use std::{
    fs::File,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

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
            !vault.unseal_key.is_empty() && vault.command(&["status"]).status.success()
        });
        vault.run(&["secrets", "enable", "transit"]);
        vault.run(&["write", "-f", "transit/keys/kek"]);
        vault.run(&["auth", "enable", "approle"]);
        vault.run(&["auth", "enable", "jwt"]);
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
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        self.run(&["policy", "write", name, file.path().to_str().unwrap()]);
    }

    /// Returns a token with a policy's rights.
    pub fn token_with(&self, policy: &str) -> String {
        self.run(&["token", "create", "-policy", policy, "-field=token"])
    }

    pub fn seal(&self) {
        self.run(&["operator", "seal"]);
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

/// moto, which replaces AWS; killed when dropped.
pub struct Moto {
    child: Child,
    pub address: String,
}

impl Moto {
    pub fn start() -> Self {
        let port = free_port();
        let child = Command::new(installed("moto/bin/moto_server"))
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let moto = Self {
            child,
            address: format!("127.0.0.1:{port}"),
        };
        wait("moto", || TcpStream::connect(&moto.address).is_ok());
        moto
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
